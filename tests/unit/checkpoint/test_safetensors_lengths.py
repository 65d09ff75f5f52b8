"""Safetensors files whose header has a length that begins as pickles do: 640 is `80 02`, 1,152 is `80 04`."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from megatron_v2pe.checkpoint.hf.safetensors_io import SafetensorsFile


@pytest.mark.parametrize("length", [640, 896, 1152])
def test_a_header_of_a_length_that_looks_like_a_pickle_is_read(tmp_path, length):
    tensors = {"a": torch.arange(6.0), **{f"{number}": torch.zeros(1) for number in range(8)}}
    path = tmp_path / "adapter_model.safetensors"
    for filler in range(length):  # the library pads a header to whole eights
        save_file(tensors, path, metadata={"format": "pt", "filler": "x" * filler})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:2] == length.to_bytes(2, "little") and path.read_bytes()[0] == 0x80
    assert torch.equal(SafetensorsFile(path).tensor("a"), tensors["a"])
