"""Copies to a GPU through pinned memory, beside what it computes; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from megatron_v2pe.device.transfer import Copies, to_device

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@dataclass(frozen=True)
class Item:
    numbers: Tensor

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Item:
        return Item(change(self.numbers))


def test_values_arrive_one_ahead_while_the_device_works():
    device = torch.device("cuda", 0)
    copies = Copies(device)
    host = [copies.pinned(Item(torch.full((1 << 20,), float(number)))) for number in range(6)]
    assert all(item.numbers.is_pinned() for item in host)
    busy = torch.randn(2048, 2048, device=device)
    sums = []
    for item in copies.one_ahead(copies.start(host[0]), host[1:]):
        for _ in range(10):
            busy = busy @ busy / 2048
        sums.append(item.numbers.sum())
        del item
    assert [total.item() for total in sums] == [float(number << 20) for number in range(6)]


def test_a_copy_does_not_wait_for_the_device():
    device = torch.device("cuda", 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(torch.arange(1000), device)
        copies = Copies(device)
        item = copies.arrived(copies.start(copies.pinned(Item(torch.arange(1000)))))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), torch.arange(1000)) and torch.equal(item.numbers.cpu(), torch.arange(1000))
