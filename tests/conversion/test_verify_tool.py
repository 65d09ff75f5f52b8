"""`tools/verify_checkpoint.py` and `tools/inspect_checkpoint.py`: what is the same, what differs, what is there.

The kinds of fault: a comparison that sees no difference in a type, a shape, padding or one bit; one that calls two
layouts of one model different; a tool that needs weights to say what they are.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.made_up_runs import make_run
from helpers.sealing import seal
from megatron_v2pe.checkpoint.hf import facts as facts_module
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf, mcore_to_mcore
from megatron_v2pe.checkpoint.hf.on_paper import plan_conversion
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.generate.compared_logits import random_prompts
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.presets import preset_config, reduced
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.checkpoint import write_hf_folder

REPOSITORY = Path(__file__).parents[2]
SHARD = "model-00002-of-00003.safetensors"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verify, inspect = tool("verify_checkpoint"), tool("inspect_checkpoint")


def with_moments(reader):
    """Return a checkpoint's reader with an optimizer's tensor beside each of the model's."""
    moments = {f"optimizer.state.exp_avg.{key}": tensor for key, tensor in reader.tensors.items()}
    return SimpleNamespace(tensors={**reader.tensors, **moments})


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Folders of one small tied Qwen model in both layouts, and one whose own head equals the embedding."""
    root = tmp_path_factory.mktemp("qwen")
    config = reduced(preset_config("InternVL3-1B"), layers=2)
    config["image_token_id"] = 7
    config["llm_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    write_hf_folder(root / "tied", config, shards=1)
    hf_to_hf(root / "tied", root / "native", layout="native")
    untied = json.loads(json.dumps(config))
    untied["llm_config"]["tie_word_embeddings"] = untied["tie_word_embeddings"] = False
    state = load_file(root / "tied" / "model.safetensors")
    embedding = next(name for name in state if name.endswith("embed_tokens.weight"))
    state["language_model.lm_head.weight"] = state[embedding].clone()
    (root / "untied").mkdir()
    save_file(state, root / "untied" / "model.safetensors", metadata={"format": "pt"})
    (root / "untied" / "config.json").write_text(json.dumps(untied))
    return root


def said(capsys, module, *arguments):
    status = module.main([str(argument) for argument in arguments])
    return status, capsys.readouterr()


def changed(folder, tmp_path, change):
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    state = load_file(copy / SHARD)
    name = sorted(name for name, tensor in state.items() if tensor.dim() == 2)[0]
    state[name] = change(state[name])
    save_file(state, copy / SHARD, metadata={"format": "pt"})
    return copy, name


def test_one_model_in_every_kind_of_folder_is_the_same(sources, converted, qwen, tmp_path, capsys):
    status, out = said(capsys, verify, sources["odd"], converted["odd"])
    assert status == 0 and "83 tensors compared: 83 the same, 0 different" in out.out
    make_run(converted["odd"], tmp_path / "run")
    assert said(capsys, verify, tmp_path / "run", sources["odd"])[0] == 0
    for first, second in (("tied", "native"), ("native", "tied"), ("tied", "untied"), ("untied", "native")):
        status, out = said(capsys, verify, qwen / first, qwen / second)
        assert status == 0 and " 0 different" in out.out, (first, second, out.out)


def test_one_bit_one_type_and_one_shape_are_seen(sources, tmp_path, capsys):
    def flipped(tensor):
        bits = tensor.view(torch.int16).clone()
        bits.view(-1)[5] ^= 1
        return bits.view(tensor.dtype)

    copy, name = changed(sources["odd"], tmp_path, flipped)
    status, out = said(capsys, verify, sources["odd"], copy)
    assert status == 1 and f"{name}: 1 of " in out.out and "82 the same, 1 different" in out.out
    assert said(capsys, verify, sources["odd"], copy, "--tolerance", "0.02")[0] == 0
    shutil.rmtree(copy)
    signed = []
    for zero in (0.0, -0.0):
        copy, name = changed(sources["odd"], tmp_path, lambda tensor, zero=zero: torch.full_like(tensor, zero))
        signed.append(copy.rename(tmp_path / f"zero{zero}"))
    status, out = said(capsys, verify, *signed)
    assert status == 1 and f"{name}: equal values in other bytes" in out.out
    assert said(capsys, verify, *signed, "--tolerance", "0")[0] == 0
    mcore_to_hf_as_fp32(sources["odd"], tmp_path)
    status, out = said(capsys, verify, sources["odd"], tmp_path / "fp32")
    assert status == 1 and "bfloat16 and float32, the same values" in out.out and "... and 73 more" in out.out
    status, out = said(capsys, verify, sources["odd"], tmp_path / "fp32", "--tolerance", "0")
    assert status == 0 and "83 within the tolerance" in out.out
    config = json.loads((sources["odd"] / "config.json").read_text())
    config["llm_config"]["vocab_size"] += 2
    write_hf_folder(tmp_path / "wider", config, shards=1)
    status, out = said(capsys, verify, sources["odd"], tmp_path / "wider")
    assert status == 1 and "has shape [509, 64] and [511, 64]" in out.out


def mcore_to_hf_as_fp32(source, tmp_path):
    hf_to_mcore(source, tmp_path / "mcore")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "fp32", dtype="fp32")


def test_tensors_that_one_has_alone_are_named(sources, tmp_path, capsys):
    config = json.loads((sources["odd"] / "config.json").read_text())
    config["llm_config"]["num_hidden_layers"] -= 1
    write_hf_folder(tmp_path / "shorter", config, dtype=torch.bfloat16, shards=3, seed=1)
    status, out = said(capsys, verify, sources["odd"], tmp_path / "shorter", "--show", "1")
    assert status == 1 and "only in" in out.out and ", 7 in one alone" in out.out


def test_a_folder_is_compared_with_its_own_manifest(converted, tmp_path, capsys):
    mcore_to_hf(converted["odd"], tmp_path / "hf", manifest=True)
    for folder in (converted["odd"], tmp_path / "hf"):
        status, out = said(capsys, verify, folder)
        assert status == 0 and "83 tensors are those of its manifest" in out.out
    shard = tmp_path / "hf" / SHARD
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    status, out = said(capsys, verify, tmp_path / "hf")
    assert status == 2 and "has the SHA-256" in out.err and "manifest.json says" in out.err
    manifest = json.loads((tmp_path / "hf" / "manifest.json").read_text())
    gone = sorted(manifest["tensors"])[3]
    manifest["tensors"]["left.over"] = manifest["tensors"].pop(gone)
    (tmp_path / "hf" / "manifest.json").write_text(json.dumps(manifest))
    error = said(capsys, verify, tmp_path / "hf")[1].err
    assert "1 tensors of the manifest are missing: left.over" in error and f"not in the manifest: {gone}" in error
    (tmp_path / "hf" / "manifest.json").unlink()
    assert "holds no manifest.json" in said(capsys, verify, tmp_path / "hf")[1].err


@pytest.mark.usefixtures("single_process")
def test_a_run_of_another_type_than_its_start_is_written_as_it_says(sources, tmp_path, capsys):
    """Runs hold float32 where the folder they start from has bfloat16 and sums of its own."""
    hf_to_hf(sources["odd"], tmp_path / "start", layout="native")
    hf_to_mcore(tmp_path / "start", tmp_path / "bf16")
    hf_to_mcore(tmp_path / "start", tmp_path / "run", dtype="fp32")
    for name in ("layout.json", "manifest.json", "checksums.json"):  # as training leaves them
        shutil.copy(tmp_path / "bf16" / "hf" / name, tmp_path / "run" / "hf" / name)
    run = make_run(tmp_path / "run", tmp_path / "work", v2pe={"rope_pos_id_version": "default"})
    (run / "iter_0000002" / "manifest.json").unlink()
    seal(run / "iter_0000002")
    lines = plan_conversion("mcore-to-mcore", run, tmp_path / "again", Options(), None)
    assert all("1.6 MiB (float32)" in line for line in lines[:2])
    mcore_to_mcore(run, tmp_path / "again")
    mcore_to_hf(tmp_path / "again", tmp_path / "hf")
    for folder, of in (
        (tmp_path / "again", ()),
        (tmp_path / "hf", (tmp_path / "start",)),
        (run, (tmp_path / "again",)),
    ):
        status, out = said(capsys, verify, folder, *of)
        assert status == 0, out
    status, out = said(capsys, inspect, tmp_path / "again")
    assert (
        "types: float32 1.6" in out.out
        and json.loads((tmp_path / "again" / "checkpoint.json").read_text())["dtype"] == "float32"
    )


def test_logits_of_one_model_are_equal_and_of_another_not(sources, converted, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEGATRON_V2PE_CONVERTED_DIR", str(tmp_path / "cache"))
    status, out = said(capsys, verify, sources["odd"], converted["odd"], "--logits", "--random", "3")
    assert status == 0 and "logits on random input of seed 3: 0 apart at most" in out.out
    copy, _ = changed(sources["odd"], tmp_path, lambda tensor: tensor * 1.5)
    status, out = said(capsys, verify, sources["odd"], copy, "--logits", "--tolerance", "10")
    assert status == 1 and ", 0 different" in out.out and "logits on random input of seed 0" in out.out


def test_random_pictures_have_the_tiles_of_the_model():
    """Where `force_image_size` is another than the tower's own, tiles have the former."""
    config = InternVLConfig.from_hf({**reduced(preset_config("InternVL3-1B")), "force_image_size": 112})
    assert config.vision.image_size == 56
    prompts = random_prompts(config, StridePolicy("default"), seed=0)
    assert [tuple(prompt.tiles[0].shape) for prompt in prompts[1:]] == [(112, 112, 3)] * 2


@pytest.fixture
def single_process(monkeypatch):
    """No launcher's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_in_a_checkpoint(sources, converted, qwen, tmp_path, capsys):
    status, out = said(capsys, inspect, sources["odd"], "--json", "--filter", "tok_embeddings")
    facts = json.loads(out.out)
    assert status == 0 and facts["kind"] == "HF folder" and facts["layout"] == "original"
    assert facts["model"]["vocabulary"] == 509 and facts["types"].keys() == {"bfloat16"} and len(facts["files"]) == 3
    assert facts["sizes"]["all"]["tensors"] == 83 and facts["sizes"]["embedding"]["parameters"] == 509 * 64
    assert sum(part["bytes"] for name, part in facts["sizes"].items() if name != "all") == facts["types"]["bfloat16"]
    expected = {"name": "language_model.model.tok_embeddings.weight", "dtype": "bfloat16", "shape": [509, 64]}
    assert facts["tensors"] == [{**expected, "bytes": 509 * 64 * 2}]
    make_run(converted["odd"], tmp_path / "run")
    status, out = said(capsys, inspect, tmp_path / "run")
    assert status == 0 and "checkpoint of a training run" in out.out and "trained: step 2" in out.out
    assert "optimizer: " in out.out and "shards in them" in out.out
    vet = facts_module.vet_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts_module, "vet_checkpoint", lambda *given, **options: with_moments(vet(*given, **options)))
        facts = json.loads(said(capsys, inspect, tmp_path / "run", "--json")[1].out)
    keys = set(vet(tmp_path / "run" / "iter_0000002", files=False).tensors)
    assert facts["optimizer"]["tensors"] == sum(facts["stored_types"].values()) == len(keys)
    assert facts["settings"]["rope_scaling"] == "dynamic by 2"
    facts = json.loads(said(capsys, inspect, qwen / "native", "--json")[1].out)
    assert facts["layout"] == "native" and facts["model"]["tied_head"] and "head" not in facts["sizes"]


def test_what_is_in_a_folder_without_weights(sources, qwen, tmp_path, capsys):
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(sources["odd"] / name, tmp_path / name)
        out = said(capsys, inspect, tmp_path)[1].out
        assert "not there: sizes follow from config.json" in out and "83 tensors" in out
    assert "model-00003-of-00003.safetensors" in out
    assert said(capsys, inspect, tmp_path / "nowhere")[0] == 2
    with pytest.raises(SystemExit):
        inspect.main([str(tmp_path), "--filter", "["])
