"""A training step is read by the host once, at its end, and nothing in it waits for a copy; counted on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from helpers import host_reads, parity
from helpers.packs import random_packs
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
TP2 = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True, use_distributed_optimizer=False)
CP2 = ParallelConfig(context_parallel_size=2, use_distributed_optimizer=False)


@pytest.fixture(scope="module")
def case(pools, golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["vision_config"]["drop_path_rate"] = 0.2
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]

    def make(layout, kind="mixed", **options):
        return parity.Case(
            hf_config=config,
            layout=layout,
            packs=random_packs(config, POLICY, kind)[:3],
            weights={name: tensor.float() for name, tensor in weights.items()},
            image_token_id=505,
            policy=POLICY,
            options={"head_chunk_size": 5, **options},
            drop_path_seed=1,
        )

    return make


@pytest.mark.parametrize(
    ("layout", "kind"),
    [(ParallelConfig(use_distributed_optimizer=False), "mixed"), (TP2, "mixed"), (CP2, "text_only_last")],
    ids=["one", "tp2", "cp2"],
)
def test_a_step_is_read_once(pools, case, layout, kind):
    ranks = layout.tensor_model_parallel_size * layout.context_parallel_size
    made = case(layout, kind, **RECOMPUTED)
    for rank in pools[ranks].run(host_reads.read_by_steps, case=made, steps=2):
        for reads in rank:
            assert len(reads) == 1 and "tolist" in reads[0] and "train/step.py" in reads[0], reads


@pytest.mark.parametrize("planted", host_reads.PLANTED)
def test_a_planted_read_is_seen(pools, case, planted):
    made = case(ParallelConfig(use_distributed_optimizer=False))
    [[reads]] = pools[1].run(host_reads.read_by_steps, case=made, steps=1, planted=planted)
    assert len(reads) > 1, reads


def test_forward_and_backward_neither_read_nor_wait_for_a_copy(pools, case):
    """On `meta` there is nothing to read: whatever tries to raises."""
    made = case(ParallelConfig())
    [copies] = pools[1].run(host_reads.copied_by_model, case=made)
    assert copies == []


def test_reads_are_followed_through_what_is_computed():
    there, here = torch.ones(4), torch.ones(4)
    with host_reads.HostReads() as reads:
        reads.put([there])
        here.sum().item()
        here.tolist()
        (there * here).sum()
        assert reads.found == []
        assert (there * here).sum().item() == 4
        (there[1:] > 0).nonzero()
        here[there > 0].sum()
        (there + 1).tolist()
        torch.tensor([1.0, there.sum()])
    names = [found.split()[0] for found in reads.found]
    assert names == ["_local_scalar_dense", "nonzero", "index", "tolist", "tensor"]
