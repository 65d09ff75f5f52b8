"""Communication overlapped with computation, in several buckets, while ranks do different things in every step.

A bucket is sent when all its parameters have had their gradients, and weights are gathered in the order in which
modules ask for them: what a rank does (images or none, one chunk in the head or several) may change neither.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from helpers import parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
STEPS = 4
BUCKETS = [40_000, 100_000, 200_000]


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]

    def make(packs):
        kinds = ["mixed", "text_only_last"] if packs == "mixed" else [packs]
        return parity.Case(
            hf_config=config,
            layout=ParallelConfig(),
            packs=[pack for kind in kinds for pack in random_packs(config, POLICY, kind)],
            weights={name: tensor.float() for name, tensor in weights.items()},
            image_token_id=505,
            policy=POLICY,
            dtype=torch.float32,
            options={"head_chunk_size": 5},
        )

    return make


TILE_BY_TILE = {"recompute_plan": RecomputePlan(decoder_layers=1, tower_tiles=1)}


@pytest.mark.parametrize(
    ("packs", "bucket_size", "context_parallel_size", "options"),
    [
        *product(["mixed", "image_only"], BUCKETS, [1, 2], [{}]),
        *product(["mixed", "image_only"], BUCKETS[:1], [1, 2], [TILE_BY_TILE]),
    ],
)
def test_several_buckets(pools, case, packs, bucket_size, context_parallel_size, options):
    """Two data-parallel ranks, or two context-parallel ones: of a pack with one tile, one of them encodes none.

    With tiles encoded one by one in the backward pass the tower has as many gradients as tiles; they count as one.
    """
    this = case(packs)
    this = replace(this, options={**this.options, **options})
    assert len({pack.pixel_values.shape[0] > 0 for pack in this.packs}) == (2 if packs == "mixed" else 1)
    layout = ParallelConfig(
        context_parallel_size=context_parallel_size,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        ddp_bucket_size=bucket_size,
    )
    single = pools[1].run(short_runs.train, case=this, steps=STEPS)[0]
    double = pools[2].run(short_runs.train, case=replace(this, layout=layout), steps=STEPS)[0]
    for ours, theirs in zip(double.losses, single.losses, strict=True):
        assert abs(ours - theirs) / theirs < 1e-5
    for ours, theirs in zip(double.grad_norms, single.grad_norms, strict=True):
        assert abs(ours - theirs) / theirs < 1e-4
