"""Phi-3's answers that outgrow the trained length are those of transformers' own class, which computes them anew there.

The kind of fault: keys in the cache were turned by the angles of short documents, new ones are by those of long ones.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from helpers import generation
from helpers.family_cases import FAMILIES
from helpers.family_parity import full_state
from megatron_v2pe.checkpoint.hf.random_weights import random_weights
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy

CONFIG = FAMILIES["phi3"].config()
TRAINED = CONFIG["llm_config"]["original_max_position_embeddings"]
LENGTHS = (TRAINED - 9, TRAINED - 3, TRAINED, TRAINED + 1, TRAINED + 8)
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def model():
    """The class of transformers, with the weights of the language model in `weights`."""
    llm = {name: value for name, value in CONFIG["llm_config"].items() if name != "architectures"}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    return Phi3ForCausalLM(Phi3Config(**llm, **ends, attn_implementation="eager")).eval()


@pytest.fixture(scope="module")
def weights(model):
    drawn = random_weights(CONFIG, 3, {"lm_head.weight": 0.5})
    prefix = "language_model."
    own = {name.removeprefix(prefix): tensor for name, tensor in drawn.items() if name.startswith(prefix)}
    model.load_state_dict(own)
    return full_state(CONFIG, drawn)


def asked(length):
    return torch.randint(
        1, CONFIG["llm_config"]["vocab_size"], (length,), generator=torch.Generator().manual_seed(length)
    )


@pytest.fixture(scope="module")
def case(weights):
    policy = StridePolicy("default")
    denominator = policy.denominator(4)
    prompts = [
        Prompt(asked(n), Ticks(torch.arange(n) * denominator, denominator), torch.zeros(0, 3, 56, 56), ())
        for n in LENGTHS
    ]
    options = GenerationOptions(max_new_tokens=NEW_TOKENS)
    return generation.Case(CONFIG, weights, prompts, -5, policy=policy, dtype=torch.float32, options=options)


@pytest.mark.parametrize("static", [False, True])
def test_greedy_answers(case, model, pools, static):
    found = pools[1].run(generation.run, case=replace(case, static=static))[0].ids
    for length, ours in zip(LENGTHS, found, strict=True):
        given = asked(length)[None]
        theirs = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        assert ours == theirs[0, length:].tolist(), length


def test_answers_with_the_angles_of_the_prompt_are_others(case, pools):
    found = pools[1].run(generation.run, case=case)[0].ids
    broken = pools[1].run(generation.run, case=replace(case, planted_break="angles of the prompt"))[0].ids
    changed = [a != b for a, b in zip(found, broken, strict=True)]
    assert any(changed[:3]) and not any(changed[3:])  # prompts beyond the trained length are long from the start
