"""A run that adds tokens and trains an adapter in one: going on, merged, in PEFT's form, asked beside its base.

The kinds of fault: rows of the base that move, rows that end at another token, a base that is taken for the grown one,
tokens of one adapter under the name of another.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.token_runs import MORE, TEXT, TOKENS, bytes_of, exported, settings, tensors, told, trained, write_base
from megatron_v2pe.checkpoint.adapters import AdapterPointer, fingerprint_of
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.hf.facts import facts_of, in_words
from megatron_v2pe.checkpoint.hf.repack import hf_to_hf
from megatron_v2pe.checkpoint.hf.table import TABLES
from megatron_v2pe.checkpoint.low_rank.merge import export_adapter, merge_adapters
from megatron_v2pe.checkpoint.low_rank.open_adapter import open_adapter
from megatron_v2pe.checkpoint.low_rank.peft_folder import WEIGHTS_FILE, read_peft, write_peft
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.generate.compared_logits import LogitInput, logits_of
from megatron_v2pe.generate.native_files import side_files
from megatron_v2pe.generate.pretrained import ChatQuestion, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.train.config import ExperimentConfig

LOGITS = 1e-5  # absolute, on logits up to 0.5; measured 1.4e-7 against peft, 1.5e-7 asked beside the base
LORA = {
    "adapter": {"kind": "lora", "rank": 2},
    "model": {"freeze_mlp": True, "freeze_backbone": True},
    "optimizer": {"weight_decay": 0.5},
}
IDS = [411, 412, 413]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base in both layouts, and converted."""
    folder = write_base(tmp_path_factory.mktemp("base"))
    hf_to_hf(folder / "hf", folder / "native", layout="native", dtype="fp32", side_files=side_files)
    hf_to_mcore(folder / "native", folder / "mcore")
    return folder


def lora(base: Path, save: Path, **changes: object) -> ExperimentConfig:
    config = settings(base, save, model_name_or_path=str(base / "native"), train_new_tokens=True, **changes)
    return config.updated(LORA, "test")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The last checkpoint of a run that was stopped and went on."""
    save = tmp_path_factory.mktemp("run") / "run"
    trained(lora(base, save), exit_step=2)
    return trained(lora(base, save))


@pytest.fixture(scope="module")
def peft_folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "native"
    export_adapter(run, folder, side_files=side_files)
    return folder


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):
    return exported(run, tmp_path_factory.mktemp("merged") / "native", "native")


def test_it_goes_on_to_the_bit_and_holds_what_is_new_alone(base, run, tmp_path):
    whole = trained(lora(base, tmp_path / "whole"))
    assert told(run) == told(whole)
    ours, theirs = tensors(run), tensors(whole)
    assert ours.keys() == theirs.keys() and not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    of_tables = {key: one.shape for key, one in ours.items() if key.endswith(TABLES)}
    assert len(of_tables) == 8 and {*of_tables.values()} == {(3, 48)}
    first = tensors(run.parent / "iter_0000002")
    assert all((first[key] != ours[key]).any(1).all() for key in TABLES)
    assert not [key for key in ours if ".adapter." not in key and key not in of_tables]
    pointer = AdapterPointer.read(run)
    assert pointer is not None and pointer.base == str(base / "native") and pointer.rows == range(411, 414)
    assert pointer.fingerprint == fingerprint_of(base / "mcore")
    shown = "\n".join(in_words(facts_of(run)))
    assert "adapter: LoRA on 14 linears" in shown and "new tokens: 3, ids 411 to 413" in shown


def test_other_tokens_and_another_base_are_refused(base, run, tmp_path):
    before = bytes_of(run.parent)
    (tmp_path / "other.json").write_text(json.dumps([TOKENS[0], TOKENS[2]]))
    words = r"has changed since the run began.*lacks 1 tokens of the checkpoint \(<loc_2>\)"
    with pytest.raises(ConfigError, match=words):
        trained(lora(base, run.parent, add_tokens=str(tmp_path / "other.json")), train_steps=6)
    with pytest.raises(ConfigError, match="no token was added to"):
        trained(lora(base, run.parent, add_tokens=None), train_steps=6)
    with pytest.raises(CheckpointError, match="of the base .* with the fingerprint .* has the fingerprint"):
        trained(lora(base, run.parent).updated({"model": {"model_name_or_path": str(changed(base, tmp_path))}}, "test"))
    after = bytes_of(run.parent)
    assert {name for name in after if before.get(name) != after[name]} <= {"train.log", "metrics.jsonl"}


def changed(base: Path, folder: Path) -> Path:
    """Write the base once more, one number of it another one."""
    for path in (base / "native").iterdir():
        if path.is_file() and path.name not in ("manifest.json", "checksums.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_peft_on_transformers_has_its_logits(base, peft_folder, merged, tmp_path):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    ids = transformers.AutoTokenizer.from_pretrained(peft_folder)(TEXT, return_tensors="pt").input_ids
    assert {*IDS} < {*ids[0].tolist()}

    def opened(folder):
        return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()

    def asked(folder):
        model = opened(base / "native")
        model.resize_token_embeddings(414)
        return peft.PeftModel.from_pretrained(model, folder).eval()

    wrapped = asked(peft_folder)
    with torch.no_grad():
        ours, theirs = opened(merged)(input_ids=ids).logits, wrapped(input_ids=ids).logits
    assert theirs.shape[-1] == 414 and (ours - theirs).abs().max() < LOGITS
    wrapped.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (peft_folder / WEIGHTS_FILE).read_bytes()
    with torch.no_grad():  # planted: rows that stand at other tokens
        for name, values in wrapped.named_parameters():
            if "trainable_tokens_delta" in name:
                values.copy_(values.flip(0))
        assert (ours - wrapped(input_ids=ids).logits).abs().max() > 100 * LOGITS


def test_there_and_back_is_the_same_to_the_byte(base, run, peft_folder, merged, tmp_path):
    model = InternVLConfig.from_folder(base / "native")
    export_adapter(run, tmp_path / "original", layout="original", side_files=side_files)
    config = json.loads((tmp_path / "original" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {
        "language_model.model.tok_embeddings": IDS,
        "language_model.output": IDS,
    }
    found = Tokenizer.from_folder(tmp_path / "original")
    assert any("; rows of 3 tokens" in line for line in in_words(facts_of(peft_folder)))
    assert found.encode(TEXT) == Tokenizer.from_folder(peft_folder).encode(TEXT) and found.special["[CRACK]"] == 413
    write_peft(read_peft(tmp_path / "original", model), model, tmp_path / "back", "native")
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (peft_folder / WEIGHTS_FILE).read_bytes()
    merge_adapters(base / "native", [peft_folder], tmp_path / "merged", side_files=side_files)
    assert bytes_of(tmp_path / "merged") == bytes_of(merged)
    merge_adapters(base / "mcore", [tmp_path / "original"], tmp_path / "mcore", side_files=side_files)
    assert {key: one.shape[0] for key, one in tensors(tmp_path / "mcore").items() if key in TABLES} == dict.fromkeys(
        TABLES, 414
    )
    assert Tokenizer.from_folder(tmp_path / "mcore" / "hf").encode(TEXT) == found.encode(TEXT)


def test_a_run_begins_with_it(base, peft_folder, tmp_path):
    """At a rate at which nothing moves; without the tokens it is refused."""
    config = lora(base, tmp_path / "run").updated({"adapter": {"start": str(peft_folder)}}, "test")
    still = config.updated({"optimizer": {"lr": 1e-30, "weight_decay": 0.0}}, "test")
    export_adapter(trained(still, train_steps=1), tmp_path / "same", side_files=side_files)
    assert (tmp_path / "same" / WEIGHTS_FILE).read_bytes() == (peft_folder / WEIGHTS_FILE).read_bytes()
    without = {"model": {"add_tokens": None, "train_new_tokens": False}, "checkpoint": {"save": str(tmp_path / "no")}}
    with pytest.raises(ConfigError, match="brings the token '<loc_1>' with id 411, which this run does not have"):
        trained(config.updated(without, "test"))


def test_it_is_asked_beside_its_base_with_others_by_name(base, run, peft_folder, merged, tmp_path):
    model = InternVLConfig.from_folder(base / "native")
    adapters = {name: open_adapter(path, model, "test") for name, path in {"a": run, "b": peft_folder}.items()}
    wanted = logits_of(hf_to_mcore(merged, tmp_path / "mcore") or tmp_path / "mcore", LogitInput(prompt=TEXT))[0]
    alone = logits_of(run, LogitInput(prompt=TEXT))[0]
    assert alone.shape == (414,) and (alone - wanted).abs().max() < LOGITS
    question = ChatQuestion((("human", TEXT),))
    with open_pretrained(base / "mcore", device="cpu", adapters=adapters) as pretrained:
        found = {}
        for name in ("a", "none", "b"):
            pretrained.choose(name)
            prompt = pretrained.encode([question], checkpoint_tiling(pretrained.config), 1)
            found[name] = first_logits(pretrained, prompt)
    with open_pretrained(run, device="cpu") as pretrained:
        found["run"] = first_logits(pretrained, pretrained.encode([question], checkpoint_tiling(pretrained.config), 1))
    assert {*IDS} < {*prompt[0].input_ids.tolist()}
    assert torch.equal(found["a"], found["b"]) and (found["a"] - found["run"]).abs().max() < LOGITS
    assert (found["a"] - found["none"]).abs().max() > 100 * LOGITS
    rows = adapters["b"].rows
    assert rows is not None
    other = replace(rows, tokens=(*rows.tokens[:2], replace(rows.tokens[2], content=MORE[0])))
    with (
        pytest.raises(ConfigError, match=r"different new tokens: the other lacks 1 tokens of one \(\[CRACK\]\)"),
        open_pretrained(base / "mcore", device="cpu", adapters={**adapters, "b": replace(adapters["b"], rows=other)}),
    ):
        pass


def first_logits(pretrained, prompts) -> torch.Tensor:
    from megatron_v2pe.generate.session import Session

    found = Session(pretrained.engine, prompts).prefill()
    assert found is not None
    return found.float().clone()


@pytest.mark.parametrize("how", ["rows", "tables"])
def test_what_peft_wrote_after_resizing_is_read(base, tmp_path, how):
    """As people do it: `add_tokens`, `resize_token_embeddings`, and rows or whole tables that are trained."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    torch.manual_seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base / "native")
    assert tokenizer.add_tokens([*TOKENS]) == 3
    model = transformers.AutoModelForImageTextToText.from_pretrained(base / "native")
    model.resize_token_embeddings(len(tokenizer))
    numbers = tokenizer.convert_tokens_to_ids([*TOKENS])
    assert numbers == [412, 413, 414], "transformers adds <video> to this tokenizer when it opens it"
    trains = {"modules_to_save": ["embed_tokens", "lm_head"]}
    if how == "rows":
        trains = {"trainable_token_indices": {"embed_tokens": numbers, "lm_head": numbers}}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["down_proj"], **trains)).eval()
    with torch.no_grad():
        for name, values in wrapped.named_parameters():
            if values.requires_grad and "lora_A" not in name:
                values += 0.05 * torch.randn(values.shape)
    wrapped.save_pretrained(tmp_path / "peft")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = wrapped(input_ids=ids).logits
    with pytest.raises(CheckpointError, match="rows behind the 411 of its base .*to 414.* not say which tokens"):
        merge_adapters(base / "native", [tmp_path / "peft"], tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "peft")
    merge_adapters(base / "native", [tmp_path / "peft"], tmp_path / "merged", side_files=side_files)
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    video = torch.arange(415) != 411  # nobody has trained its row, which resizing drew
    with torch.no_grad():
        assert (again(input_ids=ids).logits - theirs)[..., video].abs().max() < LOGITS
    assert Tokenizer.from_folder(tmp_path / "merged").encode(TEXT) == ids[0].tolist()
    small = InternVLConfig.from_folder(base / "native")
    write_peft(read_peft(tmp_path / "peft", small), small, tmp_path / "back", "native")
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (tmp_path / "peft" / WEIGHTS_FILE).read_bytes()
