"""The optimizer on the host, or fused: the same losses, the same checkpoint, which any kind of run goes on from.

Ordinary tensors stand for those of a card (`testing/made_up_card.py`); not run on a GPU.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from helpers import made_up_card, parity, short_runs
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
DP2 = ParallelConfig()


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    return parity.Case(
        hf_config=config,
        layout=DP2,
        packs=random_packs(config, POLICY, "mixed"),
        weights={name: tensor.bfloat16() for name, tensor in weights.items()},
        image_token_id=505,
        policy=POLICY,
        dtype=torch.bfloat16,
    )


@pytest.fixture(scope="module")
def run(pools, case, golden, tmp_path_factory):
    def train(offload, steps, save=False, resume=None):
        places = {}
        if save:
            root = tmp_path_factory.mktemp("offloaded" if offload else "on_the_card")
            shutil.copytree(golden / "reference_checkpoint", root / "hf")
            places["save_to"] = str(root)
        if resume is not None:
            places["resume_from"] = str(resume)
        if not offload:
            return pools[2].run(short_runs.train, case=case, steps=steps, **places)[0], places.get("save_to")
        if offload == "fused":
            return pools[2].run(made_up_card.train_fused, case=case, steps=steps, **places)[0], places.get("save_to")
        history, copied = pools[2].run(made_up_card.train_offloaded, case=case, steps=steps, **places)[0]
        assert copied > 0
        return history, places.get("save_to")

    return train


KINDS = (False, True, "fused")
CHOSEN = [(False, True), (True, "fused"), ("fused", False), (True, True)]
"""Every kind writes and every kind reads, and the optimizer on the host goes on from its own."""
PAIRS = [
    pytest.param(before, after, marks=() if (before, after) in CHOSEN else pytest.mark.exhaustive)
    for before in KINDS
    for after in KINDS
]


@pytest.fixture(scope="module")
def whole(run):
    """Four steps of an optimizer on the card."""
    return run(False, 4)[0]


@pytest.fixture(scope="module")
def saved(run):
    """Two steps of a kind of optimizer, and where they were saved; each is run once."""
    return cache(lambda kind: run(kind, 2, save=True))


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_losses_and_checkpoints_are_those_of_an_optimizer_on_the_card(run, whole, saved, before, after):
    first, root = saved(before)
    assert first.losses == pytest.approx(whole.losses[:2], rel=1e-6)
    assert first.grad_norms == pytest.approx(whole.grad_norms[:2], rel=1e-5)
    rest, _ = run(after, 2, resume=root)
    assert rest.losses == pytest.approx(whole.losses[2:], rel=1e-6)
    assert rest.grad_norms == pytest.approx(whole.grad_norms[2:], rel=1e-5)


def test_all_parameters_of_a_rank_are_copied_once(pools, case):
    _, copied = pools[1].run(made_up_card.train_offloaded, case=replace(case, layout=ParallelConfig()), steps=1)[0]
    assert copied >= sum(tensor.numel() for tensor in case.weights.values())
