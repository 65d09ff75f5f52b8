"""A model whose logits are no numbers stops with the weight or the layer named; it never answers.

The kind of fault: greedy choice among NaN takes token 0, an empty text; an evaluation of it scores 0.00 without a word.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from helpers import generation, non_finite, parity
from helpers.packs import IMG_CONTEXT, random_packs
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.generate.sampling import NOT_FINITE, Sampling, choose, marked
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

POLICY = StridePolicy("v2pe_fix", 1)
FC1, OUTPUT = "language_model.decoder.layers.1.mlp.linear_fc1.weight", "language_model.output_layer.weight"
TOWER = "vision_model.decoder.layers.1.mlp.linear_fc2.weight"
DRAWN = GenerationOptions(max_new_tokens=4, min_new_tokens=2, stop_ids=frozenset({2}), sampling=Sampling(1.0, 5, 0.9))


@pytest.fixture(scope="module")
def hf_config(golden):
    return json.loads((golden / "reference_checkpoint" / "config.json").read_text())


@pytest.fixture(scope="module")
def case(pools, hf_config):
    """One prompt of text, one with an image."""
    weights = pools[1].run(parity.random_weights, hf_config=hf_config)[0]
    pack = random_packs(hf_config, POLICY, "image_only")[0]
    ticks, end = [], 0
    for part in pack.position_ticks.values.split(pack.seqlens):
        ticks.append(part + end)
        end += int(part[-1]) + 4
    tiles = pack.pixel_values.float()
    picture = Prompt(pack.input_ids, Ticks(torch.cat(ticks), 4), tiles, (tiles.shape[0],))
    text = Prompt(torch.tensor([1, 5, 9]), Ticks(4 * torch.arange(3), 4), tiles[:0], ())
    options = GenerationOptions(max_new_tokens=4)
    made = generation.Case(hf_config, weights, [text, picture], IMG_CONTEXT, policy=POLICY, options=options)
    return replace(made, dtype=torch.float32)


@pytest.mark.parametrize("static", [False, True], ids=["loop", "static"])
@pytest.mark.parametrize("options", [GenerationOptions(max_new_tokens=4), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_damaged_weight_is_named(pools, case, static, options, value):
    this = replace(case, static=static, options=options)
    (said,) = pools[1].run(non_finite.message, case=this, damage={FC1: value})
    count = "1 NaN, 0 infinite" if math.isnan(value) else "0 NaN, 1 infinite"
    assert "the logits of its new token 1 are not finite; weights are not finite" in said
    assert f"{FC1} ({count} of" in said


@pytest.mark.parametrize("static", [False, True], ids=["loop", "static"])
def test_a_layer_that_overflows_is_named(pools, case, static):
    """Its weights are numbers, what it gives is none: what bf16 and fp16 do to a model that was not made for them."""
    (said,) = pools[1].run(non_finite.message, case=replace(case, static=static), damage={FC1: 3e38})
    assert "all weights are finite; layer 1 of the language model is the first whose output is not" in said
    (said,) = pools[1].run(non_finite.message, case=replace(case, static=static), damage={TOWER: 3e38})
    assert "all weights are finite; layer 1 of the vision tower is the first whose output is not" in said
    assert said.startswith("1: ")  # the prompt with the image; the other one has no part in it


@pytest.mark.parametrize("static", [False, True], ids=["loop", "static"])
@pytest.mark.parametrize("call", [0, 1, 3])
def test_the_first_token_or_a_later_one(pools, case, static, call):
    (said,) = pools[1].run(non_finite.message, case=replace(case, static=static), broken_call=call)
    assert f"the logits of its new token {call + 1} are not finite; all weights are finite, and the same tokens" in said


@pytest.mark.parametrize(
    "layout",
    [
        ParallelConfig(tensor_model_parallel_size=2),
        ParallelConfig(pipeline_model_parallel_size=2),
        ParallelConfig(context_parallel_size=2),
    ],
    ids=["tensor", "pipeline", "context"],
)
def test_every_rank_of_a_layout_says_the_same(pools, case, layout):
    this = replace(case, layout=layout)
    for damage, words in (
        ({FC1: math.nan}, f"{FC1} (1 NaN"),
        ({FC1: 3e38}, "layer 1 of the language model is the first"),
    ):
        first, second = pools[2].run(non_finite.message, case=this, damage=damage)
        assert first == second and words in first, first


def test_whole_models_answer_and_padding_of_the_vocabulary_is_not_looked_at(pools, case):
    assert pools[1].run(non_finite.message, case=case) == [None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_logit_that_is_no_number_marks_its_row(value, dtype):
    logits = torch.randn(3, 92_553, dtype=dtype) * 1000
    logits[1, 77] = value
    assert marked(torch.tensor([4, 5, 6]), logits).tolist() == [4, NOT_FINITE, 6]
    forbidden = logits.index_fill(1, torch.tensor([3]), -math.inf)
    assert choose(forbidden, Sampling(), ["a", "b", "c"], [0, 0, 0], of=logits)[1] == NOT_FINITE
    assert NOT_FINITE not in choose(forbidden[:1], Sampling(), ["a"], [0], of=logits[:1])
