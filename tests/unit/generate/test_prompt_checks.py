"""Prompts that cannot be answered are refused with their numbers; so are options that contradict themselves."""

from __future__ import annotations

import pytest
import torch

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.generate.generation import GenerationOptions, check_prompt
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.v2pe.position_ids import Ticks


def prompt(*ticks):
    positions = torch.tensor(ticks, dtype=torch.int64)
    return Prompt(torch.ones_like(positions), Ticks(positions, 4), torch.empty(0), (2, 1))


def test_a_prompt_must_leave_room_for_its_answer():
    check_prompt(prompt(0, 4, 5, 6, 8), window=13, max_new_tokens=10, name="q")  # positions 0, 1, 1.25, 1.5, 2
    check_prompt(prompt(0, 4, 8), window=None, max_new_tokens=10**9, name="q")
    text = (
        r"q: the prompt has 5 tokens \(3 tiles\) and takes 3 positions; with 10 new tokens that is 13, "
        "more than the window of 12"
    )
    with pytest.raises(DataError, match=text):
        check_prompt(prompt(0, 4, 5, 6, 8), window=12, max_new_tokens=10, name="q")


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match="q: the prompt is empty"):
        check_prompt(prompt(), window=None, max_new_tokens=1, name="q")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens is 3, expected 0 to max_new_tokens 2"),
        ({"stop_strings": ("a", "")}, "a stop string is empty"),
    ],
)
def test_options_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**settings)
