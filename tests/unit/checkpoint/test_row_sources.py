"""Rows of tensors as the converter reads them: the same as whole tensors, in pieces of any size, padding included.

The kinds of fault: a piece that begins or ends within a head, rows or columns of zeros that are left out, and padding
that holds numbers and is dropped without a word.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from megatron_v2pe.checkpoint.hf.folder import HFWeights
from megatron_v2pe.checkpoint.hf.mappings import QueryGroups, Stacked, mapped
from megatron_v2pe.checkpoint.hf.row_sources import HFRows, HFTensors, RowsOfKey
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.errors import CheckpointError

HEADS, GROUPS, PADDED, HEAD_DIM, WIDTH = 6, 2, 4, 4, 6


class Memory:
    """Tensors in memory as a source of rows."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.keys = {key: RowsOfKey(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}

    def read(self, key, first_row, out):
        content = self.tensors[key].contiguous().view(torch.uint8).flatten().numpy().data
        begin = first_row * self.keys[key].row_bytes
        out[:] = content[begin : begin + len(out)]


def rows_of(read, dtype, shape, step):
    """Return a tensor that is read `step` rows at a time."""
    width = shape[1] * dtype.itemsize
    whole = bytearray(b"\xff" * (shape[0] * width))
    for first in range(0, shape[0], step):
        read(first, memoryview(whole)[first * width : min(first + step, shape[0]) * width])
    return torch.frombuffer(whole, dtype=dtype).view(shape)


@pytest.fixture
def model(tmp_path):
    """A table with groups of zeros, their columns and two stacked tensors; its HF tensors; what they become."""
    groups = QueryGroups(HEADS, GROUPS, PADDED)
    rows = {"q": HEADS * HEAD_DIM, "k": GROUPS * HEAD_DIM, "v": GROUPS * HEAD_DIM}
    kinds = {"q": groups.queries, "k": groups.keys, "v": groups.values}
    mappings = [mapped(name, "qkv", rows[name], WIDTH, rows=kinds[name]) for name in rows]
    mappings.append(mapped("proj", "proj", WIDTH, HEADS * HEAD_DIM, columns=groups.columns(HEAD_DIM)))
    mappings += [mapped(name, "fc1", 5, WIDTH, rows=Stacked(part, 2)) for part, name in enumerate(("gate", "up"))]
    table = MappingTable(tuple(mappings)).check("the test")
    tensors = {one.name: torch.randn(one.shape).bfloat16() for one in table.tensors}
    save_file(tensors, tmp_path / "model.safetensors")
    whole = {one.key: torch.full(one.key_shape, torch.nan).bfloat16() for one in table.tensors}
    for one in table.tensors:
        for first, part in one.to_mcore(tensors[one.name]):
            whole[one.key][first : first + len(part)] = part
    return table, tensors, whole, tmp_path


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_rows_are_those_of_whole_tensors(model, step):
    table, tensors, whole, folder = model
    source = HFRows(HFWeights(folder), table)
    for key, expected in whole.items():
        assert source.keys[key].shape == expected.shape
        read = rows_of(lambda first, out, key=key: source.read(key, first, out), torch.bfloat16, expected.shape, step)
        assert torch.equal(read, expected), key
    back = HFTensors(Memory(whole), table)
    for name, expected in tensors.items():
        back.check_padding(name)
        read = rows_of(lambda first, out, name=name: back.read(name, first, out), torch.bfloat16, expected.shape, step)
        assert torch.equal(read, expected), name


def test_padding_that_holds_numbers_is_refused_and_a_negative_zero_is_none(model):
    table, _, whole, _ = model
    whole["qkv"][-1, 0] = whole["proj"][0, -1] = -0.0
    back, row = HFTensors(Memory(whole), table), memoryview(bytearray(HEADS * HEAD_DIM * 2))
    back.check_padding("v")
    back.read("proj", 0, row)
    whole["qkv"][-1, 0] = whole["proj"][0, -1] = 1e-6
    with pytest.raises(CheckpointError, match="qkv: 1 of .* values of its padding are not zero; v has no place"):
        back.check_padding("v")
    with pytest.raises(CheckpointError, match="proj: 1 of 24 values of its padding are not zero; proj has no place"):
        back.read("proj", 0, row)
