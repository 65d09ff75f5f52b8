"""Generation with a cache equals the answer recomputed whole at every step, in every layout; planted breaks are seen.

The oracle is one process running Megatron-Core's modules over the whole sequence for every token. Prompts are of
unequal length, with several images, one and none; their prefill is cut into pieces where a case says so.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.testing import generation, parity
from megatron_v2pe.testing.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.v2pe.stride import StridePolicy

# Largest errors of any step's logits, relative to the largest logit, measured over all cases below:
# fp64 XX, fp32 XX.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
BREAK_IS_SEEN_ABOVE = 1e-3
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "pp2_uneven": ParallelConfig(pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1),
    "cp2": ParallelConfig(context_parallel_size=2),
    "cp4": ParallelConfig(context_parallel_size=4),
    "cp2_tp2": ParallelConfig(context_parallel_size=2, tensor_model_parallel_size=2),
    "cp2_pp2": ParallelConfig(context_parallel_size=2, pipeline_model_parallel_size=2),
    "cp2_tp2_replicated_vision": ParallelConfig(
        context_parallel_size=2, tensor_model_parallel_size=2, vision_parallel="replicated"
    ),
}
WORLD = {name: max(2, layout.model_parallel_size) for name, layout in LAYOUTS.items()}
POLICY = StridePolicy("v2pe_fix", 1)
POLICIES = [
    StridePolicy("default"),
    StridePolicy("v2pe_fix", Fraction(1, 2)),
    StridePolicy("v2pe_rnd", seed=3),
]
PIECES = 7
"""Prefill budget that cuts every prompt, and inside images."""


@pytest.fixture(scope="module")
def hf_config(golden):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 509
    return config


@pytest.fixture(scope="module")
def weights(pools, hf_config):
    return pools[1].run(parity.random_weights, hf_config=hf_config)[0]


@pytest.fixture(scope="module")
def case(hf_config, weights):
    def make(dtype=torch.float64, policy=POLICY, **changes):
        denominator = policy.denominator(InternVLConfig.from_hf(hf_config).tokens_per_tile)
        packs = random_packs(hf_config, policy, "many_documents")[1:] + random_packs(hf_config, policy, "image_only")
        prompts = [_prompt(pack, dtype, denominator) for pack in packs[:5]]
        settings = {"options": GenerationOptions(max_new_tokens=6), **changes}
        return generation.Case(hf_config, weights, prompts, IMG_CONTEXT, policy=policy, dtype=dtype, **settings)

    return make


def _prompt(pack, dtype, denominator):
    """A pack's documents as one prompt: positions go on from one to the next."""
    offset, parts = 0, []
    for ticks in pack.position_ticks.split(pack.seqlens):
        parts.append(ticks + offset)
        offset += int(ticks[-1]) + denominator
    tiles = pack.pixel_values.to(dtype)
    return Prompt(pack.input_ids, torch.cat(parts), tiles, (tiles.shape[0],))


@pytest.fixture(scope="module")
def check(pools):
    """Run a case in a layout, recompute its answers whole on one process; return the largest error."""
    whole = {}

    def run(case, name=None, planted_break=None):
        layout, world = (ParallelConfig(), 1) if name is None else (LAYOUTS[name], WORLD[name])
        case = replace(case, layout=layout, planted_break=planted_break)
        results = pools[world].run(generation.run, case=case)
        answers = results[-1]  # the last stage's last rank
        assert all(result.ids == answers.ids for result in results)
        key = (str(case.policy), case.dtype, str(case.hf_config), str(answers.ids))
        if key not in whole:
            single = replace(case, planted_break=None)
            whole[key] = pools[1].run(generation.recomputed, case=single, ids=answers.ids)[0]
        return generation.relative_error(whole[key], answers.logits), results

    return run


@pytest.mark.parametrize("name", [None, *LAYOUTS])
@pytest.mark.parametrize("prefill_tokens", [1 << 20, PIECES])
def test_cache_equals_recompute(case, check, name, prefill_tokens):
    this = case(prefill_tokens=prefill_tokens)
    error, _ = check(this, name)
    assert error <= TOLERANCE[torch.float64]
