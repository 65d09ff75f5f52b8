"""Muon spread over processes: the whole of each matrix is orthogonalised, whoever holds which part of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch

from helpers import parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.muon_optimizer import MatrixLayout
from megatron_v2pe.train.optimizers.muon import MuonConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
ONE = ParallelConfig(use_distributed_optimizer=False)
TP2 = replace(ONE, tensor_model_parallel_size=2, sequence_parallel=True)
PP2 = replace(ONE, pipeline_model_parallel_size=2)
SETTINGS = MuonConfig(
    lr=1e-2,
    warmup_ratio=0.0,
    weight_decay=0.1,
    vision_lr=2e-2,
    vision_lr_decay=0.5,
    ema_decay=0.6,
    adam_eps=1e-2,
    muon_precision="fp32",
)
STEPS = 2


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    return parity.Case(
        hf_config=config,
        layout=ONE,
        packs=random_packs(config, POLICY, "mixed"),
        weights={name: tensor.float() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
    )


def train_each_part_by_itself(case, steps, settings):
    """Train as if each rank's part of a matrix were a matrix: what the gathers are for."""

    def changed(self, tensor, change):
        return self.together([change(part, 1.0) for part in self.apart(tensor)])

    with mock.patch.object(MatrixLayout, "changed", changed):
        return short_runs.train(case, steps, settings=settings)


def difference(one, other):
    return max((one[key] - other[key]).abs().max().item() / one[key].abs().max().item() for key in one)


def test_layouts_agree_and_go_on_from_one_another(pools, case, golden, tmp_path):
    """Measured: weights and averages 2.8e-7 of the largest entry; each part by itself gives 3.6e-2."""

    def run(layout, steps, function=short_runs.train, dtype=torch.float32, **places):
        this = replace(case, layout=layout, dtype=dtype)
        world = 1 if layout == ONE else 2
        return pools[world].run(function, case=this, steps=steps, settings=SETTINGS, **places)[0]

    whole = run(ONE, 2 * STEPS)
    for layout, others in ((TP2, (PP2, ONE)), (PP2, (TP2,))):
        root = tmp_path / str(layout.tensor_model_parallel_size)
        shutil.copytree(golden / "reference_checkpoint", root / "hf")
        first = run(layout, STEPS, save_to=str(root))
        assert first.losses == pytest.approx(whole.losses[:STEPS], rel=1e-6)
        for after in others:
            rest = run(after, STEPS, resume_from=str(root))
            assert difference(whole.weights, rest.weights) < 2e-6
            assert difference(whole.averages, rest.averages) < 2e-6
    broken = run(TP2, 2 * STEPS, train_each_part_by_itself)
    assert difference(whole.weights, broken.weights) > 1e-2


def test_a_bf16_run_in_pipeline_stages_goes_on_to_the_bit(pools, case, golden, tmp_path):
    """Stages hold master weights of different groups."""
    shutil.copytree(golden / "reference_checkpoint", tmp_path / "hf")
    this = replace(case, layout=PP2, dtype=torch.bfloat16)
    settings = replace(SETTINGS, muon_precision="bf16")

    def run(steps, **places):
        return pools[2].run(short_runs.train, case=this, steps=steps, settings=settings, **places)[0]

    whole = run(2 * STEPS)
    run(STEPS, save_to=str(tmp_path))
    again = run(STEPS, resume_from=str(tmp_path))
    assert again.losses == whole.losses[STEPS:]
    for key, tensor in whole.weights.items():
        assert torch.equal(tensor, again.weights[key]), key
        assert torch.equal(whole.averages[key], again.averages[key]), key
