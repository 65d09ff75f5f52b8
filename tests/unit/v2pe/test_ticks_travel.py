"""The denominator goes with the ticks from the encoder to the angles, where another one is refused."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
import torch

from megatron_v2pe.data.batch import collate
from megatron_v2pe.data.types import SampleId, TrainingDocument
from megatron_v2pe.errors import LayoutError
from megatron_v2pe.models.micro_batch import PackCutter
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.rotary import RotaryEmbedding
from megatron_v2pe.v2pe.settings import StridePolicy

PER_TILE, IMAGE = 4, 9
POLICY = StridePolicy("v2pe_rnd", strides=(Fraction(1, 3), 1, 4), seed=1)
DENOMINATOR = 12


def document(text, number, denominator=DENOMINATOR):
    """A document of text with one tile in its middle."""
    ids = torch.tensor([5] * text + [IMAGE] * PER_TILE + [6] * text)
    (stride,) = POLICY.draw(1, PER_TILE, epoch=0, sample=number)
    ticks = position_ticks(len(ids), [(text, 1)], [stride], PER_TILE, denominator)
    return TrainingDocument(ids, torch.full_like(ids, -100), ticks, ((text, 1),), (), SampleId("d", number, "f"))


def batch_of(*documents):
    return collate(documents, torch.zeros(len(documents), 28, 28, 3, dtype=torch.uint8), "token", DENOMINATOR)


@pytest.mark.parametrize("size", [1, 2])
def test_from_documents_to_angles(size):
    batch = pickle.loads(pickle.dumps(batch_of(document(3, 0), document(2, 1))))  # as from a reader process
    rotary = RotaryEmbedding(8, 1e4, POLICY.denominator(PER_TILE))
    whole, _ = rotary.cos_sin(batch.position_ticks)
    for rank in range(size):
        coordinates = RankCoordinates(context_parallel_rank=rank, context_parallel_size=size)
        cutter = PackCutter(coordinates, image_token_id=IMAGE, tokens_per_tile=PER_TILE, first_stage=False)
        moved = cutter.cut(batch).mapped(torch.Tensor.clone)
        assert moved.position_ticks.denominator == DENOMINATOR
        cos, _ = rotary.cos_sin(moved.position_ticks)
        held = {tuple(row) for row in cos.tolist()}
        assert held <= {tuple(row) for row in whole.tolist()} | {(1.0,) * 4}  # padding stands at position 0


def test_a_rotary_module_of_another_lattice_refuses_the_pack():
    """A run whose encoder and model were made of different strides would train on wrong positions, silently."""
    cutter = PackCutter(RankCoordinates(), image_token_id=IMAGE, tokens_per_tile=PER_TILE, first_stage=False)
    batch = cutter.cut(batch_of(document(3, 0)))
    other = RotaryEmbedding(8, 1e4, StridePolicy("v2pe_fix", 1).denominator(PER_TILE))
    with pytest.raises(LayoutError, match=r"10 positions are counted in ticks of 1/12, expected ticks of 1/4"):
        other.cos_sin(batch.position_ticks, batch.layout.local_seqlens, batch.last_ticks)


def test_a_document_of_another_lattice_is_not_packed():
    with pytest.raises(LayoutError, match=r"8 positions are counted in ticks of 1/24, expected ticks of 1/12"):
        batch_of(document(3, 0), document(2, 1, 2 * DENOMINATOR))
