"""Static steps, launched ahead and uncaptured, give the answers of the loop that looks at every token first.

The oracle of logits is the answer recomputed whole at every step, as in `test_generation.py`; tokens are compared with
those of the loop over the slabs' cache. On CUDA the capture and named kernels are all that is new
(`tests/unit/generate/test_static_gpu.py`).
"""

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

# Largest errors of any step's logits, relative to the largest logit, over all cases below: fp64 2e-15, fp32 9e-7,
# bf16 8e-3. The planted break gives 0.7 and more.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 3e-2}
POLICY = StridePolicy("v2pe_fix", 1)
PIECES = 7


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
    """Five prompts of 1 to some 60 tokens, images in some of them."""

    def make(dtype=torch.float64, **changes):
        denominator = POLICY.denominator(InternVLConfig.from_hf(hf_config).tokens_per_tile)
        packs = random_packs(hf_config, POLICY, "many_documents")[1:] + random_packs(hf_config, POLICY, "image_only")
        prompts = [_prompt(pack, dtype, denominator) for pack in packs[:5]]
        settings = {"options": GenerationOptions(max_new_tokens=6), **changes}
        return generation.Case(hf_config, weights, prompts, IMG_CONTEXT, policy=POLICY, dtype=dtype, **settings)

    return make


def _prompt(pack, dtype, denominator):
    offset, parts = 0, []
    for ticks in pack.position_ticks.values.split(pack.seqlens):
        parts.append(ticks + offset)
        offset += int(ticks[-1]) + denominator
    tiles = pack.pixel_values.to(dtype)
    return Prompt(pack.input_ids, Ticks(torch.cat(parts), denominator), tiles, (tiles.shape[0],))


@pytest.fixture(scope="module")
def both(pools):
    """Answers of the loop and of static steps, and the largest error of the latter's logits."""

    def run(case):
        loop = pools[1].run(generation.run, case=replace(case, planted_break=None))[0]
        ahead = pools[1].run(generation.run, case=replace(case, static=True))[0]
        whole = pools[1].run(generation.recomputed, case=replace(case, planted_break=None), ids=ahead.ids)[0]
        return loop, ahead, generation.relative_error(whole, ahead.logits)

    return run


def widest_gap(answers):
    """How near the second best token ever came to the best, relative to the largest logit."""
    tops = [logits.double().topk(2, dim=-1).values / logits.double().abs().max() for logits in answers.logits]
    return min(float((top[:, 0] - top[:, 1]).min()) for top in tops)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("prefill_tokens", [1 << 20, PIECES])
def test_the_same_tokens_and_logits(case, both, dtype, prefill_tokens):
    loop, ahead, error = both(case(dtype, prefill_tokens=prefill_tokens))
    assert error <= TOLERANCE[dtype], error
    if dtype != torch.bfloat16 or widest_gap(loop) > 2 * TOLERANCE[dtype]:
        assert ahead.ids == loop.ids
    assert all(len(ids) == 6 for ids in ahead.ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_draws(case, pools, dtype):
    """Answers longer than a window of draws, at a temperature at which every token is another one.

    Each token is what the host draws from the same logits; in fp32 answers are the loop's (in bf16 a rounding turns an
    answer of 70 tokens into another one).
    """
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, seed=7)
    this = case(dtype, options=GenerationOptions(max_new_tokens=70, sampling=sampling))
    ahead = pools[1].run(generation.run, case=replace(this, static=True))[0]
    for number, (ids, logits) in enumerate(zip(ahead.ids, ahead.logits, strict=True)):
        assert ids == choose(logits, sampling, [str(number)] * 70, range(70))
    if dtype == torch.float32:
        assert ahead.ids == pools[1].run(generation.run, case=this)[0].ids


@pytest.mark.parametrize("chunk", [2, 256])
def test_sequences_end_one_by_one(case, both, chunk):
    """Each answer ends at a token of its own, the others go on; long answers outgrow their room, the arena too."""
    this = case(options=GenerationOptions(max_new_tokens=24))
    free, _, _ = both(this)
    ends = frozenset(ids[count] for count, ids in zip((2, 5, 8, 20), free.ids, strict=False))
    options = GenerationOptions(max_new_tokens=24, min_new_tokens=2, stop_ids=ends)
    loop, ahead, error = both(replace(this, options=options, chunk=chunk))
    assert ahead.ids == loop.ids and error <= TOLERANCE[torch.float64]
    lengths = [len(ids) for ids in ahead.ids]
    assert len(set(lengths)) >= 3 and min(lengths) >= 3, lengths


def test_an_end_at_the_first_token(case, both):
    this = case(options=GenerationOptions(max_new_tokens=5))
    free, _, _ = both(this)
    options = GenerationOptions(max_new_tokens=5, stop_ids=frozenset(ids[0] for ids in free.ids[:2]))
    loop, ahead, _ = both(replace(this, options=options))
    assert ahead.ids == loop.ids and [len(ids) for ids in ahead.ids][:2] == [1, 1]
    loop, ahead, _ = both(replace(this, options=GenerationOptions(max_new_tokens=1)))
    assert ahead.ids == loop.ids == [ids[:1] for ids in free.ids]


def test_stop_strings_and_text_as_it_comes(case, pools):
    """Tokens are letters here; what comes after a stop string is dropped, though it has been computed."""
    this = case(options=GenerationOptions(max_new_tokens=12))
    free = pools[1].run(generation.texts, case=this)[0]
    stops = tuple(text[4:6] for text, *_ in free[:3])
    stopping = replace(this, options=GenerationOptions(max_new_tokens=12, stop_strings=stops))
    loop = pools[1].run(generation.texts, case=stopping)[0]
    ahead = pools[1].run(generation.texts, case=replace(stopping, static=True))[0]
    assert ahead == loop
    assert [reason for _, _, reason, _ in ahead].count("stop_string") >= 3
    assert all("".join(pieces) == text for text, _, _, pieces in ahead)
    assert [text for text, *_ in ahead] != [text for text, *_ in free]


@pytest.mark.parametrize("way", ["fake graphs", "fake graphs that fail"])
def test_a_capture_leaves_the_state_as_it_was(case, both, way):
    """Its warm-up and what it records add nothing; one that fails costs speed and nothing else."""
    this = case(options=GenerationOptions(max_new_tokens=12))
    free, _, _ = both(this)
    options = GenerationOptions(max_new_tokens=12, stop_ids=frozenset({free.ids[1][3], free.ids[2][7]}))
    loop, ahead, error = both(replace(this, options=options, planted_break=way))
    assert ahead.ids == loop.ids and error <= TOLERANCE[torch.float64]


def test_one_engine_answers_batch_after_batch(case, pools):
    """Steps and memory are kept from batch to batch, of other lengths and sizes: answers are those of a new engine."""
    this = case(static=True, options=GenerationOptions(max_new_tokens=8))
    batches = [[0, 1, 2, 3, 4], [3], [4, 0], [1], [0, 1, 2, 3, 4]]
    found, steps = pools[1].run(generation.batch_after_batch, case=this, batches=batches)[0]
    alone = pools[1].run(generation.run, case=this)[0].ids
    assert found == [[alone[number] for number in batch] for batch in batches]
    assert steps[-1] == steps[0], "the second batch of five has another step than the first"


def test_planted_break_is_seen(case, both):
    """Places are counted from 0 in every step: the token before is overwritten."""
    _, _, error = both(case(planted_break="static steps stand still"))
    assert error > 1e-2
