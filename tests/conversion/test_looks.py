"""Tensors whose rows pass in several stretches get the SHA-256 of their bytes, and their NaN are found.

The kinds of fault: parts of a tensor are taken in the order of the other side, one is taken twice or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_v2pe.checkpoint.hf import look
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.hf.budget import Budget
from megatron_v2pe.errors import CheckpointError


def sums(folder):
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("stretch", [5 << 10, 1 << 26])
def test_sums_of_tensors_that_pass_in_stretches(sources, tmp_path, monkeypatch, stretch):
    """Planted break: with every tensor taken as it passes, the joint projections of the tower have other sums."""
    again = []
    read_again = look.Look._read_again
    monkeypatch.setattr(look.Look, "_read_again", lambda one: again.append(1) or read_again(one))
    monkeypatch.setattr(Budget, "stretch", property(lambda budget: stretch))
    hf_to_mcore(sources["odd"], tmp_path / "mcore")
    found = json.loads((tmp_path / "mcore" / "manifest.json").read_text())["tensors"]
    assert {name: one["sha256"] for name, one in found.items()} == sums(sources["odd"])
    assert bool(again) == (stretch < 1 << 26)


def test_nan_in_a_stretch_is_found_at_its_place(sources, tmp_path, monkeypatch):
    folder = tmp_path / "hf"
    shutil.copytree(sources["odd"], folder)
    path = sorted(folder.glob("*.safetensors"))[1]
    state = load_file(path)
    name = next(name for name, tensor in sorted(state.items()) if tensor.dim() == 2 and tensor.shape[0] > 40)
    state[name][37, 5] = torch.nan
    save_file(state, path, metadata={"format": "pt"})
    monkeypatch.setattr(Budget, "stretch", property(lambda budget: 5 << 10))
    with pytest.raises(CheckpointError, match=rf"{name}: 1 of .* the first at \[37, 5\] is nan"):
        hf_to_mcore(folder, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()
