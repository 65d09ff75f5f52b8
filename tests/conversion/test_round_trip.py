"""HF to Megatron-Core to HF gives the same bytes, whatever the vocabulary, the type and the cut into files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from helpers.conversion import swap_queries_and_keys
from helpers.golden import read_checkpoint
from megatron_v2pe.checkpoint.hf import hf_config
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.trained import loadable
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.models.config import InternVLConfig


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_files(ours, theirs):
    left, right = contents(ours), contents(theirs)
    assert left.keys() == right.keys()
    for name, content in left.items():
        assert content == right[name], name


@pytest.mark.parametrize("name", ["reference", "odd", "single"])
def test_every_file_comes_back_to_the_byte(sources, converted, tmp_path, name):
    mcore_to_hf(converted[name], tmp_path / "hf")
    assert_same_files(sources[name], tmp_path / "hf")


def test_a_swapped_permutation_is_caught(sources, tmp_path, monkeypatch):
    """Planted break: q and k of the tower change places on the way back."""
    hf_to_mcore(sources["reference"], tmp_path / "mcore")
    swap_queries_and_keys(monkeypatch)
    with pytest.raises(CheckpointError, match=r"attn\.qkv\.(weight|bias) has the SHA-256 .*manifest.json says"):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "hf")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "hf", verify=False)
    with pytest.raises(AssertionError, match="safetensors"):
        assert_same_files(sources["reference"], tmp_path / "hf")


def test_the_folder_describes_itself(sources, converted):
    description = json.loads((converted["odd"] / "checkpoint.json").read_text())
    assert description["kind"] == "converted" and description["iteration"] == 0
    assert description["dtype"] == "bfloat16"
    name = "tokenizer.model"
    assert (converted["odd"] / "hf" / name).read_bytes() == (sources["odd"] / name).read_bytes()
    assert not list((converted["odd"] / "hf").rglob("*.safetensors"))


def test_pickles_beside_safetensors_are_left_behind(sources, tmp_path):
    import shutil

    source = tmp_path / "hf"
    shutil.copytree(sources["odd"], source)
    (source / "training_args.bin").write_bytes(b"\x80\x04.")
    (source / "checkpoint-100").mkdir()
    (source / "checkpoint-100" / "trainer_state.json").write_text("{}")
    hf_to_mcore(source, tmp_path / "mcore")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    assert_same_files(sources["odd"], tmp_path / "back")


def test_another_type_of_weights(sources, converted, tmp_path):
    mcore_to_hf(converted["odd"], tmp_path / "hf", dtype="fp32")
    config, state = read_checkpoint(tmp_path / "hf")
    _, original = read_checkpoint(sources["odd"])
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, original[name].float()), name
    assert {config["torch_dtype"], config["llm_config"]["torch_dtype"]} == {"float32"}
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    with safe_open(tmp_path / "hf" / "model-00001-of-00003.safetensors", "pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    with pytest.raises(ConfigError, match="'int4' is none of fp32, bf16, fp16"):
        mcore_to_hf(converted["odd"], tmp_path / "other", dtype="int4")


def test_an_existing_folder_is_replaced_only_on_request_and_only_by_its_like(sources, converted, tmp_path):
    target = tmp_path / "hf"
    mcore_to_hf(converted["reference"], target)
    with pytest.raises(CheckpointError, match="not empty"):
        mcore_to_hf(converted["odd"], target)
    assert_same_files(sources["reference"], target)
    mcore_to_hf(converted["odd"], target, overwrite=True)
    assert_same_files(sources["odd"], target)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match="no config.json"):
        mcore_to_hf(converted["odd"], tmp_path / "photos", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "photos"]


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    "version, stride, written",
    [("v2pe_fix", 64, 64), ("v2pe_fix", "1/2", 0.5), ("v2pe_fix", "1/3", "1/3"), ("v2pe_rnd", None, None)],
)
def test_v2pe_settings_on_request(sources, converted, tmp_path, version, stride, written):
    mcore_to_hf(converted["reference"], tmp_path / "hf", rope_pos_id_version=version, rope_pos_id_stride=stride)
    config, original = read_config(tmp_path / "hf"), read_config(sources["reference"])
    assert config["rope_pos_id_version"] == config["llm_config"]["rope_pos_id_version"] == version
    assert config.get("rope_pos_id_stride") == written
    assert config["llm_config"]["rope_scaling"] == original["llm_config"]["rope_scaling"]
    assert InternVLConfig.from_hf(config).v2pe.rope_pos_id_version == version
    for section in (config, config["llm_config"]):
        section.pop("rope_pos_id_version"), section.pop("rope_pos_id_stride", None)
    assert config == original


@pytest.mark.parametrize(
    "version, stride, message",
    [
        ("v2pe_fix", None, "needs rope_pos_id_stride"),
        ("v2pe_fix", "0", "not positive"),
        ("v2pe_fix", "wide", "not a whole number"),
        ("default", 64, "no meaning"),
        (None, 64, "no meaning"),
        ("v3pe", None, "none of default"),
    ],
)
def test_v2pe_settings_that_do_not_go_together(converted, tmp_path, version, stride, message):
    with pytest.raises(ConfigError, match=message):
        mcore_to_hf(converted["reference"], tmp_path / "hf", rope_pos_id_version=version, rope_pos_id_stride=stride)
    assert not list(tmp_path.iterdir())


def published_class_loads(scaling):
    """The rule by which the published configuration class checks `rope_scaling`, in our words."""
    if scaling is None:
        return True
    kind, factor = scaling.get("type"), scaling.get("factor")
    return len(scaling) == 2 and kind in ("linear", "dynamic") and isinstance(factor, float) and factor >= 1


@pytest.mark.parametrize("version", ["v2pe_rnd", "default"])
@pytest.mark.parametrize("extra", [{}, {"rope_type": "v2pe"}], ids=["as published", "by newer transformers"])
def test_a_config_saved_by_the_published_code_comes_back_loadable(sources, tmp_path, version, extra):
    """It holds rope_scaling.type = "v2pe", which the published class itself refuses; other files keep every byte."""
    import shutil

    source = tmp_path / "hf"
    shutil.copytree(sources["reference"], source)
    config = read_config(source)
    config.update(rope_pos_id_version=version, rope_pos_id_stride=None)
    config["llm_config"].update(rope_pos_id_version=version, rope_scaling={"type": "v2pe", "factor": 1.0, **extra})
    (source / "config.json").write_text(json.dumps(config))
    assert not published_class_loads(config["llm_config"]["rope_scaling"])
    hf_to_mcore(source, tmp_path / "mcore")
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    back = read_config(tmp_path / "back")
    assert published_class_loads(back["llm_config"]["rope_scaling"])
    plain = {"factor": 1.0, "type": "linear"} if version == "default" else {"factor": 2.0, "type": "dynamic"}
    assert back == {**config, "llm_config": {**config["llm_config"], "rope_scaling": plain}}
    (source / "config.json").unlink()
    (tmp_path / "back" / "config.json").unlink()
    assert_same_files(source, tmp_path / "back")
    options = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 16}
    mcore_to_hf(tmp_path / "mcore", tmp_path / "fixed", **options)
    written = read_config(tmp_path / "fixed")
    assert written["llm_config"]["rope_scaling"] == {"factor": 2.0, "type": "dynamic"}
    assert (written["rope_pos_id_version"], written["rope_pos_id_stride"]) == ("v2pe_fix", 16)


@pytest.mark.parametrize("version", ["v2pe_rnd", "default"])
@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
def test_a_base_that_stands_beside_the_scaling_is_where_the_published_code_reads_it(version, place):
    """Transformers 5 writes `rope_parameters` alone, of which the published class reads nothing."""
    stated = {"rope_theta": 1000000.0, "rope_type": "v2pe", "type": "v2pe", "factor": 1.0}
    back = loadable({"rope_pos_id_version": version, "llm_config": {place: stated}})["llm_config"]
    assert back["rope_theta"] == 1000000.0 and published_class_loads(back["rope_scaling"])
    assert back["rope_scaling"]["type"] == ("linear" if version == "default" else "dynamic")


def test_another_type_of_the_weights_is_stated_under_both_its_names():
    """Newer transformers writes `dtype`, and would read the weights in the old type if it were left."""
    config = {"dtype": "bfloat16", "llm_config": {"dtype": "bfloat16", "torch_dtype": "bfloat16"}, "vision_config": {}}
    written = hf_config.with_dtype(config, "float32")
    both = {"dtype": "float32", "torch_dtype": "float32"}
    assert written == {**both, "llm_config": both, "vision_config": {"torch_dtype": "float32"}}
