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

from helpers import generation, parity
from helpers.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.sampling import Sampling
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

# Largest errors of any step's logits, relative to the largest logit, measured over all cases below:
# fp64 2.3e-15, fp32 1.2e-6. The mildest planted break gives 0.68.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
BREAK_IS_SEEN_ABOVE = 1e-2
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
    for ticks in pack.position_ticks.values.split(pack.seqlens):
        parts.append(ticks + offset)
        offset += int(ticks[-1]) + denominator
    tiles = pack.pixel_values.to(dtype)
    return Prompt(pack.input_ids, Ticks(torch.cat(parts), denominator), tiles, (tiles.shape[0],))


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
    error, _ = check(case(prefill_tokens=prefill_tokens), name)
    assert error <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", [None, "tp2", "pp2", "cp2", "cp4", "cp2_tp2"])
def test_cache_equals_recompute_in_fp32(case, check, name):
    error, _ = check(case(torch.float32, prefill_tokens=3 * PIECES), name)
    assert error <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", [None, "tp2", "pp2", "cp2", "cp4", "cp2_tp2"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.version)
def test_every_version_of_positions(case, check, name, policy):
    error, _ = check(case(policy=policy), name)
    assert error <= TOLERANCE[torch.float64]


def test_dynamic_scaling_goes_by_the_prompt(case, check, hf_config):
    """Prompts longer than the trained length: a piece, and a generated token, is scaled as the whole prompt."""
    llm = {**hf_config["llm_config"], "max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    this = replace(case(policy=StridePolicy("default")), hf_config={**hf_config, "llm_config": llm})
    error, _ = check(replace(this, prefill_tokens=PIECES), "cp2")
    assert error <= TOLERANCE[torch.float64]


@pytest.fixture(scope="module")
def growing(case, hf_config):
    """Prompts below and above the length from which longrope is another one; answers cross it at different tokens."""

    def make(**changes):
        this = case(options=GenerationOptions(max_new_tokens=8, sampling=Sampling(temperature=1.5, seed=3)), **changes)
        reach = sorted(prompt.position_ticks.reach for prompt in this.prompts)
        trained = reach[2] + 4
        assert sum(length <= trained < length + 7 for length in reach) > 1 and reach[-1] > trained
        lists = {"short_factor": [1.0] * 8, "long_factor": [1.5, 2, 3, 4, 6, 8, 12, 16]}
        rope = {"rope_scaling": {"type": "longrope", **lists}, "original_max_position_embeddings": trained}
        return replace(this, hf_config={**hf_config, "llm_config": {**hf_config["llm_config"], **rope}})

    return make


@pytest.mark.parametrize("name", [None, "cp2", "pp2"])
def test_an_answer_that_outgrows_the_trained_length(growing, check, name):
    """Longrope is another one for all tokens of a longer document: what is in the cache is computed again."""
    error, _ = check(growing(), name)
    assert error <= TOLERANCE[torch.float64]


def test_an_answer_that_outgrows_the_trained_length_in_static_steps(growing, check, pools):
    _, (loop,) = check(growing())
    (ahead,) = pools[1].run(generation.run, case=growing(static=True))
    assert ahead.ids == loop.ids
    assert generation.relative_error(loop.logits, ahead.logits) <= TOLERANCE[torch.float64]
    error, _ = check(growing(), planted_break="angles of the prompt")
    assert error > BREAK_IS_SEEN_ABOVE


@pytest.mark.parametrize("name", [None, "pp2", "cp2"])
def test_sequences_end_one_by_one(case, check, name):
    """Each answer ends at a token of its own, the others go on; long answers outgrow the room of their slabs."""
    this = case(options=GenerationOptions(max_new_tokens=12))
    _, free = check(this)
    ends = frozenset(ids[count] for count, ids in zip((2, 5, 8), free[-1].ids, strict=False))
    options = GenerationOptions(max_new_tokens=12, min_new_tokens=2, stop_ids=ends)
    with_ends = replace(this, options=options, chunk=2)
    error, results = check(with_ends, name)
    lengths = [len(ids) for ids in results[-1].ids]
    assert len(set(lengths)) >= 3 and min(lengths) >= 3, lengths
    assert error <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", ["tp2", "pp2", "cp2"])
def test_draws_do_not_depend_on_layout_or_batch(case, check, name):
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=7)
    this = case(options=GenerationOptions(max_new_tokens=6, sampling=sampling))
    _, single = check(this)
    _, shared = check(this, name)
    assert shared[0].ids == single[0].ids
    assert single[0].ids != check(case())[1][0].ids


@pytest.mark.parametrize(("name", "size"), [("cp2", 2), ("cp4", 4)])
def test_the_cache_is_spread_evenly(case, check, name, size):
    """No rank holds more than its share of the prompts and of what was generated, but for a few tokens of padding."""
    this = case(options=GenerationOptions(max_new_tokens=9))
    _, results = check(this, name)
    lengths = sorted((len(prompt.input_ids) + 8 for prompt in this.prompts), reverse=True)
    assert [sum(held) for held in zip(*(result.cached for result in results), strict=True)] == lengths
    for result in results:
        for total, held in zip(lengths, result.cached, strict=True):
            assert held <= -(-total // size) + 3, (lengths, [result.cached for result in results])


@pytest.mark.parametrize(
    ("name", "planted_break"),
    [
        (None, "positions restart"),
        ("tp2", "positions restart"),
        ("pp2", "positions restart"),
        ("cp2", "cache of a rank dropped"),
        ("cp4", "cache of a rank dropped"),
        ("cp2", "lse ignored"),
        ("cp2_tp2", "lse ignored"),
        (None, "pieces forget"),
        ("cp2", "pieces forget"),
    ],
)
def test_planted_break_is_seen(case, check, name, planted_break):
    error, _ = check(case(prefill_tokens=PIECES), name, planted_break)
    assert error > BREAK_IS_SEEN_ABOVE
