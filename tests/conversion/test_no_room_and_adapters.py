"""A disk that is full or too small, and adapters that nobody has merged: refused with a reason, and nothing is left.

The kinds of fault: a message that is the system's alone, half a checkpoint left on a full disk, an adapter's tensors
called "not part of this architecture", which nobody understands.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_v2pe.base import exit_status
from megatron_v2pe.checkpoint.hf import plan
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.hf.on_paper import plan_conversion
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.errors import CheckpointError, ConfigError, SpaceError

SHARD = "model-00002-of-00003.safetensors"
WAYS = {"hf-to-mcore": hf_to_mcore, "mcore-to-hf": mcore_to_hf, "hf-to-hf": hf_to_hf}


def error_at_a_limit(convert, source, target, largest):
    """Number of the error that a process meets whose files may not become larger; 0: none."""
    process = os.fork()
    if not process:
        status = 255
        torch.set_num_threads(1)  # the threads of the process before are not there, and PyTorch would wait for them
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            convert(source, target)
            status = 0
        except OSError as error:
            named = str(target.name) in str(error.filename)
            status = (error.errno or 254) if named and exit_status.of(error) == exit_status.TRY_AGAIN else 253
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_fills_up_on_the_way(sources, converted, tmp_path, way):
    source = converted["odd"] if way == "mcore-to-hf" else sources["odd"]
    found = error_at_a_limit(WAYS[way], source, tmp_path / "out", 100_000)
    assert found == errno.EFBIG and not list(tmp_path.iterdir())
    assert error_at_a_limit(WAYS[way], source, tmp_path / "out", 10_000_000) == 0  # the limit was the reason


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(sources, converted, tmp_path, monkeypatch, way):
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=60 << 20))
    source = converted["odd"] if way == "mcore-to-hf" else sources["odd"]
    with pytest.raises(SpaceError, match=r"the conversion writes 0.8 MiB, the disk has 60.0 MiB free; make room"):
        WAYS[way](source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_plan_says_what_would_be_read_written_and_held(sources, tmp_path, monkeypatch):
    odd, target = sources["odd"], tmp_path / "out"
    lines = plan_conversion("hf-to-hf", odd, target, Options(dtype="fp32", max_shard_size="50KB"), None)
    assert "83 tensors, 0.8 MiB (bfloat16) in 3 files" in lines[0]
    assert "83 tensors, 1.6 MiB (float32) in 41 files" in lines[1] and "2.00 GiB" in lines[2]
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(odd / name, tmp_path / name)
        lines = plan_conversion("hf-to-mcore", tmp_path, target, Options(), None)
        assert "83 tensors, 0.8 MiB (bfloat16)" in lines[0] and "the weights are not there" in lines[-1]
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=40 << 30))
    lines = plan_conversion("hf-to-mcore", None, target, Options(), "InternVL2_5-78B")
    assert "146.05 GiB (bfloat16)" in lines[0] and "too little, the conversion would be refused" in lines[3]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["more"] = index["weight_map"].pop("mlp1.0.bias")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"missing: mlp1.0.bias; 1 tensors are not part .*: more"):
        plan_conversion("hf-to-mcore", tmp_path, target, Options(), None)
    assert not target.exists()


def test_sizes_and_limits_that_are_none(sources, tmp_path):
    for options in ({"max_shard_size": "5 gigs"}, {"memory_limit": "lots"}):
        with pytest.raises(ConfigError, match="expected a number of bytes such as 5GB"):
            hf_to_mcore(sources["odd"], tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="--memory-limit is 1000000 bytes, expected 64 MiB or more"):
        hf_to_mcore(sources["odd"], tmp_path / "out", memory_limit="1MB")
    with pytest.raises(ConfigError, match="layout 'mistral' is none of original, native"):
        hf_to_hf(sources["odd"], tmp_path / "out", layout="mistral")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_an_adapter_alone(sources, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="it is an adapter: name the model that it belongs to here"):
        find_checkpoint(folder, "checkpoint")
    for convert in (hf_to_mcore, hf_to_hf):
        with pytest.raises(CheckpointError, match=r"adapter_config.json: an adapter, and no model beside it: merge"):
            convert(folder, tmp_path / "out")
        shutil.copy(sources["odd"] / "config.json", folder / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_tensors_of_an_adapter_among_the_weights(sources, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(sources["odd"], folder)
    state = load_file(folder / SHARD)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for letter in "AB":
        name = f"language_model.base_model.model.model.layers.0.attention.wqkv.lora_{letter}.default.weight"
        state[name], index["weight_map"][name] = torch.ones(2, 2, dtype=torch.bfloat16), SHARD
    save_file(state, folder / SHARD, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"holds an unmerged adapter: 2 of 85 tensors, .*lora_A.*merge_and_unload"
    ):
        hf_to_mcore(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
