"""Sums of bits tell tensors apart that differ in one bit, and what differs is named with the ranks that hold it."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.train.health.divergence import _compared, bit_sums

INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_any_single_flipped_bit_changes_the_sum(dtype, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    (before,) = bit_sums([values])
    width = INTEGERS[dtype].itemsize * 8
    for place in range(count):
        for bit in range(width):
            flipped = values.clone()
            mask = 1 << bit if bit < width - 1 else -(1 << bit)  # the highest is the sign of an integer
            flipped.view(INTEGERS[dtype])[place] ^= mask
            assert bit_sums([flipped]) != [before]


def test_the_place_in_memory_and_zero_do_not_matter():
    buffer = torch.randn(41, generator=torch.Generator().manual_seed(0)).bfloat16()
    sums = [bit_sums([part]) for part in (buffer[1:33], buffer[1:33].clone(), buffer[1:33].clone().view(4, 8))]
    assert sums[0] == sums[1] == sums[2]
    assert bit_sums([]) == [] and bit_sums([torch.empty(0)]) == [0]
    assert bit_sums([torch.zeros(4)]) != bit_sums([-torch.zeros(4)]), "bits, not values"
    assert bit_sums([torch.full((4,), torch.nan)]) == bit_sums([torch.full((4,), torch.nan)])


def test_what_differs_is_named_with_the_smaller_group_first():
    everyone = [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 5}, {"a": 7, "c": 5}, {"a": 1}]
    assert _compared(everyone) == ["a: ranks 2 against 0, 1, 3"]
    assert _compared([{"a": 1}] * 3) == []
    assert _compared([{"a": 1}, {"a": 2}]) == ["a: ranks 0 against 1"]
