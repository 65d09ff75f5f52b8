"""Packs under two budgets, and micro-batches made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_v2pe.data.batch import collate, loss_weights
from megatron_v2pe.data.packing.online import BestFitPacker
from megatron_v2pe.data.types import Picture, SampleId, TrainingDocument
from megatron_v2pe.v2pe.position_ids import Ticks


@dataclass(frozen=True)
class Item:
    name: str
    num_tokens: int
    num_tiles: int


EXAMPLE = [Item(*row) for row in zip("ABCDEF", (28, 10, 19, 42, 16, 8), (2, 0, 1, 3, 1, 1), strict=True)]


def names(pack):
    return "".join(item.name for item in pack.items)


def test_example():
    """The reference's worked example; text-only samples take no tile here, they take one there."""
    packer = BestFitPacker(max_tokens=64, max_tiles=6, max_open=20)
    assert not any(packer.add(item) for item in EXAMPLE)
    assert [names(pack) for pack in packer.open] == ["ABC", "DE", "F"]
    assert [(pack.tokens, pack.tiles) for pack in packer.open] == [(57, 3), (58, 4), (8, 1)]


def test_the_fullest_leaves_when_too_many_are_open():
    packer = BestFitPacker(max_tokens=10, max_tiles=4, max_open=2)
    assert packer.add(Item("a", 6, 0)) is None
    assert packer.add(Item("b", 7, 0)) is None
    assert names(packer.add(Item("c", 8, 0))) == "c"
    assert names(packer.add(Item("d", 3, 0))) == "bd", "a pack that is full leaves at once"
    assert packer.add(Item("e", 1, 4)) is None
    assert [names(pack) for pack in packer.open] == ["ae"]


def test_best_fit_prefers_the_least_room():
    packer = BestFitPacker(max_tokens=10, max_tiles=4, max_open=9)
    for item in (Item("a", 6, 0), Item("b", 8, 0), Item("c", 2, 0)):
        pack = packer.add(item)
    assert names(pack) == "bc"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=60), st.integers(1, 5))
def test_budgets_hold_and_nothing_is_lost(sizes, max_open):
    packer = BestFitPacker(max_tokens=50, max_tiles=9, max_open=max_open)
    finished = [packer.add(Item(str(i), *size)) for i, size in enumerate(sizes)]
    packs = [pack for pack in finished if pack] + packer.open
    assert len(packer.open) <= max_open
    for pack in packs:
        assert pack.tokens == sum(item.num_tokens for item in pack.items) <= 50
        assert pack.tiles == sum(item.num_tiles for item in pack.items) <= 9
    assert sorted(int(item.name) for pack in packs for item in pack.items) == list(range(len(sizes)))


@pytest.mark.parametrize(("reduction", "weight"), [("token", 1), ("sample", 1 / 5), ("square", 1 / math.sqrt(5))])
def test_weights(reduction, weight):
    labels = torch.tensor([-100, 1, 2, -100, 3, 4, 5])
    expected = torch.where(labels == -100, 0.0, weight)
    assert torch.equal(loss_weights(labels, reduction), expected.to(torch.float32))
    assert loss_weights(torch.full((3,), -100), reduction).tolist() == [0, 0, 0]


def document(start, labels, tiles=0):
    length = len(labels)
    pictures = (Picture("x", (tiles, 1)),) if tiles else ()
    return TrainingDocument(
        torch.arange(start, start + length),
        torch.tensor(labels),
        Ticks(torch.arange(length) * 4, 4),
        ((1, tiles),) if tiles else (),
        pictures,
        SampleId("d", start, "f"),
    )


def test_collate():
    documents = [document(10, [-100, 11, 12], tiles=2), document(20, [-100, -100, 22, -100])]
    batch = collate(documents, torch.zeros(2, 2, 2, 3, dtype=torch.uint8), "square", 4)
    assert batch.input_ids.tolist() == [10, 11, 12, 20, 21, 22, 23]
    assert batch.labels.tolist() == [11, 12, -100, -100, 22, -100, -100]
    weights = [0.5**0.5, 0.5**0.5, 0, 0, 1, 0, 0]
    assert torch.allclose(batch.loss_weights, torch.tensor(weights))
    assert batch.position_ticks.values.tolist() == [0, 4, 8, 0, 4, 8, 12]
    assert (batch.seqlens, batch.num_tiles) == ((3, 4), (2,))
    assert [source.line for source in batch.sources] == [10, 20]


def test_no_document_gives_an_empty_batch():
    batch = collate([], torch.zeros(0, 2, 2, 3, dtype=torch.uint8), "token", 4)
    assert batch.seqlens == () and batch.sources == ()
    assert all(len(values) == 0 for values in (batch.input_ids, batch.labels, batch.loss_weights, batch.position_ticks))
    assert batch.input_ids.dtype == torch.int64 and batch.loss_weights.dtype == torch.float32
