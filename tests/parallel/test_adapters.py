"""An adapter on a linear is exact under tensor parallelism, equals its merged weight, and is stored beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helpers import adapters, parity
from helpers.packs import random_packs
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.adapters import apply_adapters
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy

TARGETS = ("attention", "mlp")
TP2 = ParallelConfig(tensor_model_parallel_size=2, use_distributed_optimizer=False)
TOLERANCE = 2e-12
"""Relative, in float64, to the largest entry of a tensor."""


@pytest.fixture(scope="module")
def case(golden, pools):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    policy = StridePolicy("v2pe_fix", 1)
    return parity.Case(
        hf_config=config,
        layout=ParallelConfig(use_distributed_optimizer=False),
        packs=random_packs(config, policy, "mixed"),
        weights=pools[1].run(parity.random_weights, hf_config=config)[0],
        image_token_id=505,
        policy=policy,
        dtype=torch.float64,
    )


@pytest.fixture(scope="module")
def drawn(pools, case):
    return pools[1].run(adapters.random_adapters, case=case, targets=TARGETS)[0]


@pytest.fixture(scope="module")
def single(pools, case, drawn):
    return pools[1].run(adapters.run, case=case, targets=TARGETS, adapters=drawn[1])[0]


def worst(one, other):
    assert one.keys() == other.keys()
    floor = parity.GRADIENT_FLOOR * max(g.abs().max() for g in one.values())
    return max(((g - other[name]).abs().max() / g.abs().max().clamp(min=floor)).item() for name, g in one.items())


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_two_ranks_equal_one(pools, case, drawn, single, sequence_parallel, recompute):
    names = ("granularity", "method", "num_layers")
    values = ("full", "uniform", 1) if recompute else (None, None, None)
    options = {f"recompute_{name}": value for name, value in zip(names, values, strict=True)}
    layout = replace(TP2, sequence_parallel=sequence_parallel)
    loss, gradients = pools[2].run(
        adapters.run, case=replace(case, layout=layout, options=options), targets=TARGETS, adapters=drawn[1]
    )[0]
    assert abs(loss - single[0]) < TOLERANCE * abs(single[0])
    assert worst(single[1], gradients) < TOLERANCE


def test_a_forgotten_sum_is_seen(pools, case, drawn, single):
    """Gradients of parameters that both ranks hold differ, and `gather_full` says so."""
    with pytest.raises(Exception, match="adapter.*replicas at offset"):
        pools[2].run(adapters.run, case=replace(case, layout=TP2), targets=TARGETS, adapters=drawn[1], how="forgotten")


def test_merged_weights_give_the_same(pools, case, drawn, single):
    loss, gradients = pools[1].run(adapters.run, case=case, targets=TARGETS, adapters=drawn[1], how="merged")[0]
    assert abs(loss - single[0]) < TOLERANCE * abs(single[0])
    outside = {name: g for name, g in single[1].items() if name in gradients and "norm" in name}
    assert len(outside) > 4 and worst(outside, {name: gradients[name] for name in outside}) < TOLERANCE


def test_targets_are_groups_or_linears_of_a_part(pools, case, drawn):
    names, _ = drawn
    of_decoder, _ = pools[1].run(adapters.random_adapters, case=case, targets=("language_model.linear_qkv",))[0]
    assert of_decoder == [n for n in names if n.startswith("language_model.") and n.endswith("linear_qkv")] != []
    assert any(name.startswith("vision_projection.") for name in names)
    with pytest.raises(ConfigError, match="adapter target 'atention' is unknown; did you mean attention"):
        apply_adapters(torch.nn.Linear(1, 1), ["atention"], adapters.ScaledLowRank)


def test_a_base_checkpoint_loads_around_adapters(pools, case, golden, tmp_path):
    """Linears take the checkpoint's weights; adapters, of which it has none, stay as they are."""
    source = write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf")
    hf_to_mcore(source, tmp_path / "megatron")
    state = pools[2].run(
        adapters.load,
        case=replace(case, layout=TP2),
        targets=("language_model.mlp",),
        folder=str(tmp_path / "megatron"),
        begin=0.5,
    )[0]
    own = {name for name in state if ".adapter." in name}
    assert own and all((state[name] == 0.5).all() for name in own)
    assert not any((tensor == 0.5).all() for name, tensor in state.items() if name not in own)
