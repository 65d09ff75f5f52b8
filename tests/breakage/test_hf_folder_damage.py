"""A damaged HF folder is refused by name, or what it says is carried along to the byte; never a traceback or a wait.

Other programs' folders have no checksums: what is damaged is noticed where it can be read. Ours have, and every change
to them is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.attacks import payloads
from megatron_v2pe.checkpoint.hf import finite
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, V2PEError
from megatron_v2pe.foreign import text
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config, write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_tokenizer

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"


def small_config():
    config = internvl2_2b_config()
    config["vision_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 56}
    config["llm_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 512}
    config["vision_config"]["num_attention_heads"] = 2
    config["llm_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    return config | {"force_image_size": 56}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An HF folder with every kind of file; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "hf"
    write_hf_folder(folder, small_config(), shards=2)
    tokenizer = write_tokenizer(folder)
    decoder = {str(tokenizer.special["<img>"]): {"content": "<img>", "lstrip": False, "special": True}}
    files = {
        "tokenizer_config.json": {"added_tokens_decoder": decoder, "model_max_length": 8192, "tokenizer_class": "x"},
        "special_tokens_map.json": {"bos_token": "<s>", "additional_special_tokens": ["<img>"]},
        "preprocessor_config.json": {"image_mean": [0.485, 0.456, 0.406], "size": 448},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    (folder / "README.md").write_text("# A small model\n")
    (folder / "examples").mkdir()
    (folder / "examples" / "one.json").write_text('[{"question": "Why?"}, NaN]')
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """What a conversion with an option gives: a folder with checksums."""
    root = tmp_path_factory.mktemp("exported")
    hf_to_mcore(folder, root / "mcore")
    mcore_to_hf(root / "mcore", root / "hf", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=64)
    return root / "hf"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_bytes() for name in names(folder)}


@contextmanager
def patience(seconds):
    def tired(*_):
        raise TimeoutError("still not done")

    before = signal.signal(signal.SIGALRM, tired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def use(source, root):
    """Convert a folder there and back and read what came of it; return `refused: ...`, `right`, or what is wrong."""
    mcore, back = root / "mcore", root / "back"
    try:
        with patience(300):
            hf_to_mcore(source, mcore)
            mcore_to_hf(mcore, back)
            InternVLConfig.from_folder(back), Tokenizer.from_folder(back)
            said = "right" if contents(back) == contents(source) else "SILENT: other files came back"
    except V2PEError as error:
        said = f"refused: {error}"
        if "\n" in str(error) or len(str(error)) > 1500 or "\x1b" in str(error):
            said = f"MESSAGE: {str(error)[:300]!r}"
        elif mcore.exists() != back.exists() and not mcore.exists():
            said = "LEFT: something was written"
    except BaseException as error:
        said = f"TRACEBACK: {type(error).__name__}: {error}"
    for place in (mcore, back):
        shutil.rmtree(place, ignore_errors=True)
    return said


def write(content):
    return lambda path, draw: path.write_bytes(content)


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path, draw):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(1, len(content) - 2)])


def replaced(make):
    def damage(path, draw):
        path.unlink()
        make(path)

    return damage


def wrong_type(path, draw):
    """Give one field of a JSON file, at any depth, another type."""
    content = json.loads(path.read_text())
    place = content
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or draw.random() < 0.3:
            break
        place = place[key]
    place[key] = draw.choice([[], {}, "\x1b[31m", -1, 1e300, True, None, 10**30, [[["x"]]], "x" * 3000])
    path.write_text(json.dumps(content))


OUTSIDE = "/proc/self/status"
UNREADABLE = {
    "empty": write(b""),
    "cut": cut,
    "brackets": write(b"[" * 100_000),
    "digits": write(b'{"a": ' + b"9" * 5000 + b"}"),
    "not UTF-8": write(b'{"a": "\xff\xfe"}'),
    "zeros": write(bytes(64)),
    "a pipe": replaced(os.mkfifo),
    "a folder": replaced(os.mkdir),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link that leaves": replaced(lambda path: path.symlink_to(OUTSIDE)),
    "a link to nothing": replaced(lambda path: path.symlink_to("nowhere")),
}
READ = ("config.json", INDEX, SHARD, "tokenizer.model", "added_tokens.json", "tokenizer_config.json",
        "special_tokens_map.json", "generation_config.json", "preprocessor_config.json")  # fmt: skip
"""Files that the program reads: whatever cannot be read of them is refused."""


def damaged(folder, root, name, damage, draw):
    copy = root / "hf"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    damage(copy / name, draw)
    return copy


def test_the_folder_itself_converts(folder, tmp_path):
    assert use(folder, tmp_path) == "right"


def faults(folder, root, names, kinds, draw, allowed=("refused",)):
    for name in names:
        for kind, damage in kinds.items():
            said = use(damaged(folder, root, name, damage, draw), root)
            if not said.startswith(allowed):
                yield f"{name}, {kind}: {said[:300]}"


def test_what_cannot_be_read_is_refused(folder, tmp_path):
    assert list(faults(folder, tmp_path, READ, UNREADABLE, random.Random(SEED))) == []


def test_a_reader_that_takes_what_it_can_is_caught(folder, tmp_path, monkeypatch):
    """Planted break: a JSON file that cannot be parsed counts as an empty object."""
    right = text.parse_json

    def lenient(content, source, error, **options):
        try:
            return right(content, source, error, **options)
        except error:
            return {}

    monkeypatch.setattr(text, "parse_json", lenient)
    found = list(faults(folder, tmp_path, READ[-2:], UNREADABLE, random.Random(SEED)))
    assert any("digits: right" in line for line in found)


def test_what_is_missing_is_refused(folder, tmp_path):
    gone = {"gone": lambda path, draw: path.unlink()}
    needed = ("config.json", INDEX, SHARD, "tokenizer.model")
    assert list(faults(folder, tmp_path, needed, gone, random.Random(SEED))) == []


def test_special_files_beside_a_checkpoint_are_refused(folder, tmp_path):
    kinds = {name: damage for name, damage in UNREADABLE.items() if name.startswith("a ") and name != "a folder"}
    kinds["a link to its own folder"] = replaced(lambda path: path.symlink_to("."))
    assert list(faults(folder, tmp_path, ("README.md", "examples/one.json"), kinds, random.Random(SEED))) == []


def test_flips_and_wrong_types_are_refused_or_carried_along(folder, tmp_path):
    """What still is a checkpoint goes there and back to the byte: nothing is half understood."""
    draw = random.Random(SEED)
    kinds = {f"flip {number}": flip for number in range(4)}
    found = list(faults(folder, tmp_path, names(folder), kinds, draw, ("refused", "right")))
    types = {f"type {number}": wrong_type for number in range(6)}
    found += faults(
        folder, tmp_path, [name for name in READ if name.endswith(".json")], types, draw, ("refused", "right")
    )
    assert found == []


def test_attacks_under_every_name_run_nothing(folder, tmp_path):
    """Payloads in every file, and under names that other programs load without being asked."""
    victim, draw = tmp_path / "victim", random.Random(SEED)
    kinds = {kind: (lambda path, draw, content=content: path.write_bytes(content))
             for kind, content in payloads(victim).items()}  # fmt: skip
    tempting = ("pytorch_model.bin", "model.pt", "training_args.bin", "scaler.pt", "x.npy", "tokenizer.pkl")
    found = list(faults(folder, tmp_path, READ, kinds, draw))
    for name in tempting:  # beside whole weights they are left behind, with a warning
        for damage in kinds.values():
            copy = damaged(folder, tmp_path, name, damage, draw)
            hf_to_mcore(copy, tmp_path / "mcore", overwrite=True)
    assert found == [] and not victim.exists()
    names_ = names(tmp_path / "mcore" / "hf")
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names_), names_


def edited_header(path, change):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].decode()
    new = change(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def entry(**changes):
    def change(header):
        content = json.loads(header)
        content["language_model.model.norm.weight"] |= changes
        return json.dumps(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda header: header.replace("{", '{"language_model.model.norm.weight":1,', 1),
            "'language_model.model.norm.weight' stands twice",
        ),
        (entry(dtype="Q4"), "language_model.model.norm.weight: dtype: found the text 'Q4'"),
        (entry(shape=[True]), "language_model.model.norm.weight: shape.0.: found true, expected a whole number"),
        (entry(shape=[-16]), "language_model.model.norm.weight: shape.0.: found -16, expected 0 or more"),
        (entry(shape="16"), "language_model.model.norm.weight: shape: found the text '16', expected a list"),
        (entry(shape=[1] * 9 + [16]), "10 axes and 2 data_offsets"),
        (entry(shape=[2**53, 2**53]), "bytes of data, shape"),
        (entry(data_offsets=[0, 1, 2]), "3 data_offsets"),
        (entry(data_offsets=[0.5, 32]), "data_offsets.0.: found 0.5"),
        (entry(data_offsets=[-32, 0]), "data_offsets.0.: found -32"),
        (entry(data_offsets=[10**6, 10**6 + 32]), "begins at byte"),
        (entry(more=1), "unknown field 'more'"),
        (
            lambda header: header.replace("language_model.model.norm.weight", "mlp1\\u001b.1"),
            r"mlp1\\x1b.1: found a name",
        ),
        (lambda header: "[" * 100_000, "nested deeper than 64"),
        (lambda header: '{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        (lambda header: '{"__metadata__": {"format": 1}}', "__metadata__: format: found 1, expected text"),
        (lambda header: "[]", "a list, expected an object"),
    ],
)
def test_headers_that_lie(folder, tmp_path, change, message):
    copy = damaged(folder, tmp_path, SHARD, lambda path, draw: edited_header(path, change), None)
    with pytest.raises(CheckpointError, match=message):
        hf_to_mcore(copy, tmp_path / "mcore")
    assert names(tmp_path / "mcore") == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_that_are_no_numbers_are_refused_by_name(folder, tmp_path, value, dtype):
    copy = damaged(folder, tmp_path, SHARD, lambda path, draw: None, None)
    for path in copy.glob("*.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    state = load_file(copy / SHARD)
    name = next(name for name in state if name.endswith("feed_forward.w2.weight"))
    state[name][3, 5] = float(value)
    save_file(state, copy / SHARD)
    kind = "1 NaN, 0 infinite" if value == "nan" else "0 NaN, 1 infinite"
    expected = rf"{name}: 1 of 256 values are not finite \({kind}\), the first at \[3, 5\] is {value}"
    with pytest.raises(CheckpointError, match=expected):
        hf_to_mcore(copy, tmp_path / "mcore")
    assert names(tmp_path / "mcore") == []


def examined(values):
    """What is found in a tensor called `w`."""
    examination = finite.Examination("w", values.dtype, tuple(values.shape))
    examination.update(memoryview(values.view(torch.uint8).numpy()))
    return examination.result()


def test_large_numbers_are_numbers():
    """Sums of a block overflow where no value does."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = torch.full((300_000,), torch.finfo(dtype).max, dtype=dtype)
        numbers = finite.NumbersOnly("here")
        numbers.note(examined(values))
        numbers.conclude()
        values[-1] = float("nan")
        numbers.note(examined(values))
        with pytest.raises(CheckpointError, match=r"the first at \[299999\] is nan"):
            numbers.conclude()


def test_all_weights_that_are_no_numbers_are_counted_and_converted_on_request(folder, tmp_path, caplog):
    """In both directions: one message for all tensors, a refusal by default, the same bytes where that is asked for."""
    copy = damaged(folder, tmp_path, SHARD, lambda path, draw: None, None)
    state = load_file(copy / SHARD)
    matrices = sorted(name for name, tensor in state.items() if tensor.dim() == 2)[:5]
    for number, name in enumerate(matrices):
        state[name][0, : number + 1] = float("nan")
        state[name][1, 0] = float("inf")
    save_file(state, copy / SHARD, metadata={"format": "pt"})
    counted = "; and 2 more; in all 5 tensors hold 15 NaN and 5 infinite values"
    with pytest.raises(CheckpointError, match=f"{counted}: .* --no-refuse-non-finite"):
        hf_to_mcore(copy, tmp_path / "mcore")
    assert names(tmp_path / "mcore") == []
    hf_to_mcore(copy, tmp_path / "mcore", refuse_non_finite=False)
    with pytest.raises(CheckpointError, match=counted):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    with pytest.raises(CheckpointError, match=counted):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back", dtype="fp32")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back", refuse_non_finite=False)
    assert (tmp_path / "back" / SHARD).read_bytes() == (copy / SHARD).read_bytes()
    assert caplog.text.count("15 NaN and 5 infinite values; converted as they are") == 2


def test_an_export_that_overflows_its_type_is_refused(folder, tmp_path):
    copy = damaged(folder, tmp_path, SHARD, lambda path, draw: None, None)
    state = load_file(copy / SHARD)
    state["language_model.model.norm.weight"][0] = 1e6
    save_file(state, copy / SHARD)
    hf_to_mcore(copy, tmp_path / "mcore")
    with pytest.raises(CheckpointError, match="language_model.model.norm.weight: 1 of 16 values are not finite"):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back", dtype="fp16")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "added_tokens.json",
            {"<img>": "335"},
            "added_tokens.json: <img>: found the text '335', expected a whole number",
        ),
        ("added_tokens.json", {"<img>": True}, "<img>: found true"),
        ("added_tokens.json", {"<img>": -1}, "<img>: found -1, expected between 0 and"),
        ("added_tokens.json", {"": 335}, "a token of 0 characters"),
        ("added_tokens.json", {"a": 340, "b": 340}, "token 'b': id 340 is taken by 'a'"),
        ("added_tokens.json", {"<img>": 5}, "token '<img>': found id 5, but"),
        ("added_tokens.json", {"<tag>": 512}, "513 tokens in the tokenizer, 512 rows in the model; '<tag>' has id 512"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "found 'x', expected an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {}}}, "added_tokens_decoder: 5: field 'content'"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder: found a list"),
        ("special_tokens_map.json", {"bos_token": 5}, "bos_token: found 5, expected text"),
        ("generation_config.json", [1], "holds a list, expected an object"),
        (INDEX, {"weight_map": {"a": 1}}, "weight_map: a: found 1, expected text"),
        (INDEX, {"weight_map": {"a": "../x.safetensors"}}, "refused: a is said to be in"),
        (INDEX, {"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": "5"}}, "total_size: found the text"),
    ],
)
def test_side_files_of_wrong_types(folder, tmp_path, name, content, message):
    copy = damaged(folder, tmp_path, name, write(json.dumps(content).encode()), None)
    with pytest.raises(V2PEError, match=message):
        hf_to_mcore(copy, tmp_path / "mcore")


def test_every_change_to_an_export_is_noticed(exported, tmp_path):
    draw = random.Random(SEED)
    kinds = {"flip": flip, "flip again": flip, "cut": cut, "gone": lambda path, draw: path.unlink()}
    files = [name for name in names(exported) if name != "checksums.json"]
    assert {"config.json", SHARD, "README.md", "examples/one.json"} < set(files)
    assert use(exported, tmp_path) == "right"
    assert list(faults(exported, tmp_path, files, kinds, draw)) == []
    found = list(faults(exported, tmp_path, ["checksums.json"], {"flip": flip, "cut": cut, "empty": write(b"")}, draw))
    assert found == []


def test_without_checksums_a_flipped_weight_would_pass(exported, tmp_path):
    """Planted break: the lists of checksums taken away, first one, then the other."""
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    (copy / "checksums.json").unlink()
    content = bytearray((copy / SHARD).read_bytes())
    content[-1] ^= 1
    (copy / SHARD).write_bytes(content)
    assert "language_model.output.weight has the SHA-256" in use(copy, tmp_path)
    (copy / "manifest.json").unlink()
    assert use(copy, tmp_path) == "right"


def test_checksums_of_another_program_are_a_file_like_others(folder, tmp_path):
    copy = damaged(folder, tmp_path, "README.md", lambda path, draw: None, None)
    (copy / "checksums.json").write_text('{"model.safetensors": "sha256:00"}')
    assert use(copy, tmp_path) == "right"


@pytest.fixture
def snapshot(folder, tmp_path):
    """The folder as the hub's cache has it: links to files named after their content."""
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1a2b"
    blobs.mkdir(parents=True)
    (snapshot / "examples").mkdir(parents=True)
    for name, content in contents(folder).items():
        small = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = blobs / (hashlib.sha256(content).hexdigest() if name.endswith((".safetensors", ".model")) else small)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def test_the_cache_of_the_hub_is_followed(snapshot, tmp_path):
    assert use(snapshot, tmp_path) == "right"
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to("/etc/hostname")
    assert "a link that leaves" in use(snapshot, tmp_path)


@pytest.mark.parametrize("name", [SHARD, "tokenizer.model", "config.json", "README.md"])
def test_a_flip_in_the_cache_of_the_hub_is_noticed(snapshot, tmp_path, name):
    content = bytearray((snapshot / name).read_bytes())
    content[-2] ^= 1
    (snapshot / name).write_bytes(content)
    assert use(snapshot, tmp_path).startswith("refused")


def test_a_published_sha256_is_compared(folder, tmp_path):
    copy = damaged(folder, tmp_path, SHARD, lambda path, draw: None, None)
    digest = hashlib.sha256((copy / SHARD).read_bytes()).hexdigest()
    (copy / f"{SHARD}.sha256").write_text(f"{digest}  {SHARD}\n")
    assert use(copy, tmp_path) == "right"
    (copy / f"{SHARD}.sha256").write_text(f"{'0' * 64}  {SHARD}\n")
    assert f"has the digest {digest}, it was published as 000" in use(copy, tmp_path)
    (copy / f"{SHARD}.sha256").write_text("none")
    assert "expected 64 hexadecimal digits" in use(copy, tmp_path)


def test_a_folder_that_is_no_checkpoint_is_not_walked_through(tmp_path):
    began = time.process_time()
    with pytest.raises(V2PEError, match="config.json: no such file"), patience(300):
        hf_to_mcore(Path("/"), tmp_path / "mcore")
    assert time.process_time() - began < 5  # measured: 0.0004 s


def test_deep_folders_are_refused(folder, tmp_path):
    copy = damaged(folder, tmp_path, "README.md", lambda path, draw: None, None)
    (copy / "/".join("d" * 1 for _ in range(60))).mkdir(parents=True)
    assert "folders nested deeper" in use(copy, tmp_path)


def test_no_random_bytes_are_a_tokenizer(folder, tmp_path):
    draw, refused = np.random.default_rng(SEED), 0
    whole = (folder / "tokenizer.model").read_bytes()
    for name in ("added_tokens.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    for _ in range(200):
        content = bytearray(whole)
        for place in draw.integers(0, len(content), draw.integers(1, 30)):
            content[place] = draw.integers(256)
        (tmp_path / "tokenizer.model").write_bytes(content)
        try:
            tokenizer = Tokenizer.from_folder(tmp_path)
            assert all(0 <= number < len(tokenizer) for number in tokenizer.encode("a red <img> square é"))
        except V2PEError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
