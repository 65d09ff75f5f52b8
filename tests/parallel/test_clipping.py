"""Norm and clipping that stay on the device give what Megatron-Core gives, which reads them back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helpers import parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
LAYOUTS = {
    "one": (1, ParallelConfig(use_distributed_optimizer=False)),
    "one distributed": (1, ParallelConfig()),
    "tp2": (2, ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, use_distributed_optimizer=False)),
    "dp2": (2, ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)),
    "pp2": (2, ParallelConfig(pipeline_model_parallel_size=2)),
}
SETTINGS = AdamWConfig(lr=1.0, warmup_ratio=0.0, weight_decay=0.0, adam_eps=1.0)
"""An epsilon so large that updates follow the gradients' size; Adam as usual would hide it."""
NORM = 1e-6  # relative; measured 0 in all of them: the sums are formed alike
WEIGHT = 1e-6  # of the largest; measured 0


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]

    def make(layout):
        return parity.Case(
            hf_config=config,
            layout=layout,
            packs=random_packs(config, POLICY, "mixed"),
            weights={name: tensor.float() for name, tensor in weights.items()},
            image_token_id=505,
            policy=POLICY,
            dtype=torch.float32,
        )

    return make


def largest_difference(ours, theirs):
    """Of all weights, relative to the largest entry of each."""
    pairs = ((ours.weights[name], weight) for name, weight in theirs.weights.items())
    return max(((mine - weight).abs().max() / weight.abs().max()).item() for mine, weight in pairs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_as_megatron_core(pools, case, name):
    world, layout = LAYOUTS[name]
    made = case(layout)
    ours = pools[world].run(short_runs.train, case=made, steps=2, settings=SETTINGS)[0]
    theirs = pools[world].run(short_runs.train_by_megatron_core, case=made, steps=2, settings=SETTINGS)[0]
    assert all(norm > 2 * SETTINGS.clip_grad for norm in ours.grad_norms), "nothing was clipped"
    assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=NORM)
    assert largest_difference(ours, theirs) <= WEIGHT


def test_another_limit_is_seen(pools, case):
    made, other = case(ParallelConfig()), replace(SETTINGS, clip_grad=SETTINGS.clip_grad / 2)
    ours = pools[1].run(short_runs.train, case=made, steps=1, settings=SETTINGS)[0]
    theirs = pools[1].run(short_runs.train_by_megatron_core, case=made, steps=1, settings=other)[0]
    assert ours.grad_norms == pytest.approx(theirs.grad_norms, rel=NORM)
    assert largest_difference(ours, theirs) > 100 * WEIGHT
