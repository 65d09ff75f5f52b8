"""A training step waits for the GPU once, as PyTorch sees it; skipped where there is none."""

from __future__ import annotations

import json

import pytest
import torch

from helpers import host_reads, parity
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.worker_pool import WorkerPool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
POLICY = StridePolicy("v2pe_fix", 1)


def test_a_step_waits_once(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    case = parity.Case(
        hf_config=config,
        layout=ParallelConfig(use_distributed_optimizer=False),
        packs=random_packs(config, POLICY, "mixed")[:3],
        weights={name: tensor.bfloat16() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
        dtype=torch.bfloat16,
        device="cuda",
    )
    pool = WorkerPool(1, device="cuda")
    try:
        [steps] = pool.run(host_reads.read_by_steps, case=case, steps=3)
        [planted] = pool.run(host_reads.read_by_steps, case=case, steps=3, planted="loss")
    finally:
        pool.close()
    for waits in steps[1:]:  # what the first one compiles and fills is not looked at
        assert len(waits) == 1 and "train/step.py" in waits[0], waits
    assert all(len(waits) > 1 for waits in planted[1:]), planted
