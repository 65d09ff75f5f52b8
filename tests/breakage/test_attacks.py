"""No byte of a checkpoint runs code: an attack in every file and every entry, loaded in every way there is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.attacks import archive_of, load_in_every_way, payloads, with_objects
from helpers.sealing import seal
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_tokenizer

TEMPTING = (
    "model.pt",
    "common_0.pt",
    "rng_state.pkl",
    "hf/pytorch_model.bin",
    "hf/tokenizer.pkl",
    "hf/x.npy",
    "scaler.pt",
)
"""Names other programs load without being asked."""


@pytest.fixture(scope="module")
def hf_config(golden):
    return json.loads((golden / "reference_checkpoint" / "config.json").read_text())


@pytest.fixture(scope="module")
def folder(golden, hf_config, tmp_path_factory):
    """A converted checkpoint; not to be changed."""
    root = tmp_path_factory.mktemp("attacked")
    write_checkpoint_copy(golden / "reference_checkpoint", root / "hf")
    hf_to_mcore(root / "hf", root / "mcore")
    return root / "mcore"


def copies(folder, root, count):
    for number in range(count):
        shutil.copytree(folder, root / f"copy{number}")
    return [root / f"copy{number}" for number in range(count)]


def outcomes(pools, hf_config, folders):
    return pools[1].run(load_in_every_way, folders=[str(folder) for folder in folders], hf_config=hf_config)[0]


def test_an_untouched_folder_loads_in_every_way(pools, hf_config, folder, tmp_path):
    (found,) = outcomes(pools, hf_config, copies(folder, tmp_path, 1))
    refused = {way: said for way, said in found.items() if said != "loaded"}
    assert list(refused) == ["state"], refused  # a converted folder has no state of a run


@pytest.mark.slow
def test_an_attack_in_every_file(pools, hf_config, folder, tmp_path):
    """Each file replaced by each payload, sealed as its sender would; and as files that nobody should look at."""
    victim = tmp_path / "victim"
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    kinds = payloads(victim)
    cases = [(name, kind) for name in (*files, *TEMPTING) for kind in kinds]
    cases = [case for number, case in enumerate(cases) if case[0] in (".metadata", "common.pt") or number % 3 == 0]
    attacked = copies(folder, tmp_path, len(cases))
    for target, (name, kind) in zip(attacked, cases, strict=True):
        (target / name).write_bytes(kinds[kind])
        if name != "checksums.json":
            seal(target)
    found = outcomes(pools, hf_config, attacked)
    assert not victim.exists()
    escaped = [(case, way, said) for case, one in zip(cases, found, strict=True) for way, said in one.items()]
    escaped = [entry for entry in escaped if entry[2].startswith("ESCAPED")]
    assert not escaped, escaped[:5]
    for (name, kind), one in zip(cases, found, strict=True):
        if name in (".metadata", "common.pt", "checkpoint.json", "metadata.json"):
            assert one["weights"].startswith("refused"), (name, kind, one)


def test_an_attack_in_every_shard_and_every_object(pools, hf_config, folder, tmp_path):
    """Data files hold a pickle per entry. Objects are never read, tensors only by a reader that knows tensors."""
    victim = tmp_path / "victim"
    kinds = payloads(victim)
    attacked = copies(folder, tmp_path, len(kinds))
    for target, payload in zip(attacked, kinds.values(), strict=True):
        with_objects(target, payload)
    found = outcomes(pools, hf_config, attacked)
    assert not victim.exists()
    for kind, one in zip(kinds, found, strict=True):
        assert one["weights"] == one["export"] == "loaded", (kind, one)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    attacked = copies(folder, tmp_path, len(kinds))
    for target, payload in zip(attacked, kinds.values(), strict=True):
        _replace_a_shard(target, payload)
    found = outcomes(pools, hf_config, attacked)
    assert not victim.exists()
    for kind, one in zip(kinds, found, strict=True):
        assert one["weights"].startswith("refused"), (kind, one)
        assert one["weights, unchecked"].startswith("refused") and one["export, unchecked"].startswith("refused")


def test_the_payloads_work_on_a_careless_reader(tmp_path):
    """The planted break: what is refused above does run code where it is loaded as Megatron-Core loads it."""
    victim = tmp_path / "victim"
    ran = 0
    for kind, content in payloads(victim).items():
        if kind in ("zip behind a pickle", "two pickles in a zip", "numpy objects"):
            continue
        (tmp_path / "file").write_bytes(content)
        try:
            torch.load(tmp_path / "file", weights_only=False)
        except Exception:
            pass
        ran += victim.exists()
        shutil.rmtree(victim, ignore_errors=True)
    assert ran >= 4


def test_a_tensor_that_lies_about_its_shape_or_its_data(tmp_path):
    from megatron_v2pe.errors import CheckpointError
    from megatron_v2pe.foreign.pickles import load_archive

    def read(content):
        return load_archive(memoryview(bytearray(content)), "file", CheckpointError)

    good = archive_of({"a": torch.arange(6.0).view(2, 3)[:, 1:], "n": [1, "x", None, 2.5]})
    loaded = read(good)
    assert torch.equal(loaded["a"], torch.tensor([[1.0, 2.0], [4.0, 5.0]])) and loaded["n"] == [1, "x", None, 2.5]
    for position in range(0, len(good), 7):  # any byte: a value, or one error
        damaged = bytearray(good)
        damaged[position] ^= 0x55
        try:
            read(damaged)
        except CheckpointError:
            continue


def _replace_a_shard(folder: Path, payload: bytes) -> None:
    import pickle

    metadata = pickle.loads((folder / ".metadata").read_bytes())
    data = next(folder.glob("*.distcp"))
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "vision_projection.norm.bias")
    with data.open("ab") as stream:
        info.offset, info.length = stream.tell(), len(payload)
        stream.write(payload)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(folder)


def test_links_that_leave_the_folder_are_refused(pools, hf_config, folder, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    attacked = copies(folder, tmp_path, 3)
    (attacked[0] / "hf" / "notes.txt").symlink_to(outside)
    (attacked[1] / "hf" / "more").symlink_to(tmp_path)
    (attacked[2] / "hf" / "notes.txt").symlink_to(attacked[2] / "hf" / "config.json")
    found = outcomes(pools, hf_config, attacked)
    for one in found[:2]:
        assert "link that leaves" in one["weights"] and "link that leaves" in one["export, unchecked"], one
    assert found[2]["weights"] == "loaded" and found[2]["export"] == "loaded"


def test_a_checkpoint_with_remote_code_is_carried_along_and_never_run(hf_config, tmp_path):
    """`auto_map` names Python files beside the weights; transformers would import them."""
    victim = tmp_path / "victim"
    config = {**hf_config, "auto_map": {"AutoModel": "modeling.Model"}}
    write_hf_folder(tmp_path / "hf", config, shards=1)
    write_tokenizer(tmp_path / "hf")
    (tmp_path / "hf" / "modeling.py").write_text(f"import os; os.mkdir({str(victim)!r})\n")
    hf_to_mcore(tmp_path / "hf", tmp_path / "mcore")
    assert not victim.exists() and (tmp_path / "mcore" / "hf" / "modeling.py").is_file()
