"""Decoding on a card, by captured steps and Triton's kernels, beside the loop on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from helpers import generation, parity
from helpers.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.sampling import Sampling, choose
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.worker_pool import WorkerPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
POLICY = StridePolicy("v2pe_fix", 1)
# Relative to the largest logit; not measured yet. A token too few or too many in the cache gives 0.1 and more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@pytest.fixture(scope="module")
def card():
    pool = WorkerPool(1, device="cuda")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def case(golden, pools):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 509
    weights = pools[1].run(parity.random_weights, hf_config=config)[0]
    denominator = POLICY.denominator(InternVLConfig.from_hf(config).tokens_per_tile)
    packs = random_packs(config, POLICY, "many_documents")[1:] + random_packs(config, POLICY, "image_only")

    def prompt(pack):
        offset, parts = 0, []
        for ticks in pack.position_ticks.values.split(pack.seqlens):
            parts.append(ticks + offset)
            offset += int(ticks[-1]) + denominator
        tiles = pack.pixel_values.float()
        return Prompt(pack.input_ids, Ticks(torch.cat(parts), denominator), tiles, (tiles.shape[0],))

    def make(dtype, **options):
        settings = GenerationOptions(**{"max_new_tokens": 24, **options})
        prompts = [prompt(pack) for pack in packs[:5]]
        return generation.Case(
            config, weights, prompts, IMG_CONTEXT, policy=POLICY, dtype=dtype, options=settings, static=True
        )

    return make


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_captured_steps_give_the_logits_of_the_cpu(case, pools, card, dtype):
    this = case(dtype)
    ahead = card.run(generation.run, case=replace(this, device="cuda"))[0]
    whole = pools[1].run(generation.recomputed, case=replace(this, dtype=torch.float64), ids=ahead.ids)[0]
    assert generation.relative_error(whole, [logits.double() for logits in ahead.logits]) <= TOLERANCE[dtype]
    if dtype == torch.float32:
        assert ahead.ids == pools[1].run(generation.run, case=replace(this, static=False))[0].ids


def test_a_step_is_captured_and_not_called(case, card):
    """Without the graph answers are the same, and slow; that it is there is what this shows."""
    assert card.run(generation.captured_steps, case=replace(case(torch.bfloat16), device="cuda"))[0] >= 1


def test_draws_are_those_of_the_host(case, card):
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=7)
    ahead = card.run(generation.run, case=replace(case(torch.bfloat16, sampling=sampling), device="cuda"))[0]
    for number, (ids, logits) in enumerate(zip(ahead.ids, ahead.logits, strict=True)):
        same = [a == b for a, b in zip(ids, choose(logits, sampling, [str(number)] * 24, range(24)), strict=True)]
        assert sum(same) >= 23  # sums of chances may round the other way


def test_answers_end_one_by_one(case, pools, card):
    this = case(torch.float32)
    free = pools[1].run(generation.run, case=replace(this, static=False))[0].ids
    ends = frozenset(ids[count] for count, ids in zip((2, 5, 8, 20), free, strict=False))
    this = case(torch.float32, stop_ids=ends, min_new_tokens=2)
    expected = pools[1].run(generation.run, case=replace(this, static=False))[0].ids
    assert card.run(generation.run, case=replace(this, device="cuda"))[0].ids == expected
