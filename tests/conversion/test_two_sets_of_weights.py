"""Two sets of weights in one folder: refused with both named where readers differ in which they load, else told.

The kind of fault: a run is saved again, in shards, into the folder that holds the single file of before.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.hf.folder import INDEX, SINGLE, HFWeights
from megatron_v2pe.checkpoint.hf.random_weights import write_checkpoint
from megatron_v2pe.errors import CheckpointError


@pytest.fixture
def sharded(tmp_path):
    """Shards of two tensors with their index."""
    weights = {"a": torch.zeros(4, 4), "b": torch.ones(4, 4)}
    write_checkpoint(tmp_path, {}, weights, shards=2)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["whole", "part", "empty", "whole, a shard missing"])
def test_shards_with_an_index_and_a_single_file(sharded, content):
    """Whatever the single file holds: transformers would load it."""
    if content == "empty":
        (sharded / SINGLE).write_bytes(b"")
    else:
        names = ("a",) if content == "part" else ("a", "b")
        save_file({name: torch.zeros(4, 4) for name in names}, sharded / SINGLE)
    if "missing" in content:
        (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=rf"two sets of weights: {SINGLE}, and 2 shards that {INDEX} names"
    ) as said:
        HFWeights(sharded)
    assert ("; 1 of them missing" in str(said.value)) == ("missing" in content)
    assert "model-00001-of-00002.safetensors" in str(said.value) and "move one of the two elsewhere" in str(said.value)


def test_the_converter_refuses_them_before_it_writes(sources, tmp_path):
    source = tmp_path / "hf"
    shutil.copytree(sources["reference"], source)
    files = sorted(source.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    write_checkpoint(source, json.loads((source / "config.json").read_text()), tensors, shards=2)
    save_file(tensors, source / SINGLE)
    with pytest.raises(CheckpointError, match="two sets of weights"):
        hf_to_mcore(source, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()


def test_an_index_that_names_the_single_file_is_one_set(tmp_path):
    save_file({"a": torch.zeros(4, 4)}, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": SINGLE}}))
    assert set(HFWeights(tmp_path).layout.places()) == {"a"}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights(sharded, name):
    """Transformers puts it on top of what it loads."""
    (sharded / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{name}: an adapter beside the weights .*tools/merge_adapter.py"):
        HFWeights(sharded)


@pytest.mark.parametrize(
    "name", ["model-00003-of-00003.safetensors", "consolidated.safetensors", "model.fp16.safetensors.index.json"]
)
def test_weights_that_nobody_would_load_are_named(sharded, caplog, name):
    (sharded / name).write_text("{}")
    assert set(HFWeights(sharded).layout.places()) == {"a", "b"}
    assert f"read is the 2 shards that {INDEX} names; not read: {name}" in caplog.text


def test_writing_again_in_another_number_of_files_leaves_one_set(sharded):
    weights = {"a": torch.zeros(4, 4), "b": torch.ones(4, 4)}
    write_checkpoint(sharded, {}, weights, shards=1)
    assert names(sharded) == ["config.json", SINGLE]
    write_checkpoint(sharded, {}, weights, shards=2)
    assert SINGLE not in names(sharded) and INDEX in names(sharded)
