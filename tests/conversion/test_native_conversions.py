"""Folders go from one layout into the other, through Megatron or not, and come back tensor by tensor, file by file."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.made_up_runs import make_run
from helpers.native_models import small_config, small_state
from helpers.tokenizer_kinds import KINDS, write_internlm2
from megatron_v2pe.checkpoint.hf import to_hf
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.hf.repack import hf_to_hf
from megatron_v2pe.checkpoint.trained import trained_model
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.generate.native_files import ORIGINALS, side_files
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config

OF_LAYOUT = {"manifest.json", "checksums.json", "model.safetensors.index.json"}
"""Files that a conversion adds."""


def original_folder(folder, name, dtype=torch.bfloat16):
    rows = write_internlm2(folder) if name == "internlm2" else KINDS[name](folder)
    config = small_config(name, auto_map={"AutoConfig": "configuration.X"})
    config["llm_config"] = {**config["llm_config"], "vocab_size": rows + 3}
    state = {key: value.to(dtype) for key, value in small_state(config).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    (folder / "modeling_internvl_chat.py").write_text("raise RuntimeError\n")
    return config, state


def weights(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def same(first, second):
    return {*first} == {*second} and all(torch.equal(first[key], second[key]) for key in first)


def files(folder):
    """Names and bytes of the files that are no weights and that no conversion adds."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name not in OF_LAYOUT}


@pytest.mark.parametrize("name", ["internlm2", "qwen2", "phi3"])
def test_original_to_native_to_megatron_and_back(name, tmp_path):
    config, state = original_folder(tmp_path / "original", name)
    hf_to_hf(tmp_path / "original", tmp_path / "native", layout="native", side_files=side_files)
    native = weights(tmp_path / "native")
    assert layout_of(tmp_path / "native") == "native"
    assert not {*native} & {*state} - {key for key in state if key.startswith("language_model.")}
    assert InternVLConfig.from_folder(tmp_path / "native") == InternVLConfig.from_hf(config)

    hf_to_mcore(tmp_path / "native", tmp_path / "mcore")
    assert trained_model(tmp_path / "mcore") == InternVLConfig.from_hf(config)
    mcore_to_hf(tmp_path / "mcore", tmp_path / "again")
    assert same(weights(tmp_path / "again"), native)
    assert files(tmp_path / "again") == files(tmp_path / "native")

    mcore_to_hf(tmp_path / "mcore", tmp_path / "back", layout="original", side_files=side_files)
    assert same(weights(tmp_path / "back"), state)
    back, before = files(tmp_path / "back"), files(tmp_path / "original")
    assert json.loads(back.pop("config.json")) == {**config, **sections(config, tmp_path / "back")}
    del before["config.json"]
    assert back == before
    assert not (tmp_path / "back" / ORIGINALS).exists()

    hf_to_mcore(tmp_path / "original", tmp_path / "other")
    mcore_to_hf(tmp_path / "other", tmp_path / "exported", layout="native", side_files=side_files)
    assert same(weights(tmp_path / "exported"), native)
    assert files(tmp_path / "exported") == files(tmp_path / "native")


def sections(config, folder):
    """Both sections as they came back: what the published class takes by default is stated in them now."""
    read = json.loads((folder / "config.json").read_text())
    for name in ("llm_config", "vision_config"):
        assert read[name].items() >= config[name].items()
    return {name: read[name] for name in ("llm_config", "vision_config")}


def test_a_native_llama_becomes_internlm2_when_asked(tmp_path):
    config, state = original_folder(tmp_path / "original", "internlm2")
    hf_to_hf(tmp_path / "original", tmp_path / "native", layout="native", side_files=side_files)
    path = tmp_path / "native" / "config.json"
    native = json.loads(path.read_text())
    del native["v2pe_original"]
    path.write_text(json.dumps(native))
    (tmp_path / "native" / "checksums.json").unlink()
    options = {"layout": "original", "side_files": side_files}
    hf_to_hf(tmp_path / "native", tmp_path / "llama", **options)
    assert read_config(tmp_path / "llama")["llm_config"]["architectures"] == ["LlamaForCausalLM"]
    hf_to_hf(tmp_path / "native", tmp_path / "internlm2", language_model="internlm2", **options)
    assert same(weights(tmp_path / "internlm2"), state)
    assert InternVLConfig.from_folder(tmp_path / "internlm2").llm == InternVLConfig.from_hf(config).llm
    assert Tokenizer.from_folder(tmp_path / "internlm2").encode("Hi <img>") == Tokenizer.from_folder(
        tmp_path / "original"
    ).encode("Hi <img>")
    with pytest.raises(ConfigError, match="leave it out"):
        hf_to_hf(tmp_path / "original", tmp_path / "no", language_model="internlm2", **options)


def test_weights_of_a_native_run_keep_the_tiles_it_was_trained_with(tmp_path):
    """What stands in config.json and in the processor's files goes through `mcore-to-mcore` together."""
    original_folder(tmp_path / "original", "qwen2")
    hf_to_hf(tmp_path / "original", tmp_path / "native", layout="native", side_files=side_files)
    hf_to_mcore(tmp_path / "native", tmp_path / "mcore")
    most = json.loads((tmp_path / "native" / "preprocessor_config.json").read_text())["max_patches"]
    run = make_run(tmp_path / "mcore", tmp_path / "run", data={"max_dynamic_patch": most + 2})
    convert = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"))["main"]
    assert convert(["mcore-to-mcore", str(run), str(tmp_path / "again")]) == 0
    assert convert(["mcore-to-hf", str(tmp_path / "again"), str(tmp_path / "out")]) == 0
    stated = [json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "preprocessor_config.json")]
    assert (stated[0]["max_dynamic_patch"], stated[1]["max_patches"]) == (most + 2, most + 2)


def test_weights_beside_the_config_of_the_other_layout_are_named(tmp_path):
    source = tmp_path / "original"
    original_folder(source, "qwen2")
    hf_to_hf(source, tmp_path / "native", layout="native")
    (tmp_path / "native" / "checksums.json").unlink()
    stated = {folder: (folder / "config.json").read_bytes() for folder in (source, tmp_path / "native")}
    for folder, kind, other in ((source, "original", "native"), (tmp_path / "native", "native", "original")):
        (folder / "config.json").write_bytes(next(text for name, text in stated.items() if name != folder))
        words = f"the tensors have the names of the {kind} layout .*config.json is of the {other} one"
        with pytest.raises(CheckpointError, match=words):
            hf_to_mcore(folder, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()


def test_a_folder_with_the_names_of_modules_is_read(tmp_path):
    original_folder(tmp_path / "original", "qwen2")
    hf_to_hf(tmp_path / "original", tmp_path / "native", layout="native", side_files=side_files)
    named = {}
    for key, value in weights(tmp_path / "native").items():
        for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head"),
                         ("vision_tower.", "model.vision_tower."),
                         ("multi_modal_projector.", "model.multi_modal_projector.")):  # fmt: skip
            if key.startswith(old):
                named[new + key.removeprefix(old)] = value
                break
    for path in (tmp_path / "native").glob("*.safetensors*"):
        path.unlink()
    (tmp_path / "native" / "checksums.json").unlink()
    (tmp_path / "native" / "manifest.json").unlink(missing_ok=True)
    save_file(named, tmp_path / "native" / "model.safetensors", metadata={"format": "pt"})
    hf_to_hf(tmp_path / "native", tmp_path / "back", layout="original", side_files=side_files)
    assert same(weights(tmp_path / "back"), weights(tmp_path / "original"))


def test_a_model_without_a_native_form_is_refused_before_a_weight_is_written(tmp_path, monkeypatch):
    """Without a tokenizer nobody knows the image token's id; an hour of weights would be thrown away at the end."""
    original_folder(tmp_path / "original", "qwen2")
    for path in (tmp_path / "original").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()

    def written(*_, **__):
        raise AssertionError("weights are written")

    monkeypatch.setattr(to_hf, "write_files", written)
    with pytest.raises(ConfigError, match="image_token_id is not known"):
        hf_to_hf(tmp_path / "original", tmp_path / "native", layout="native")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]
