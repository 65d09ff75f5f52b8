"""Counting tokens without encoding a whole conversation, and filling one to the last token."""

from __future__ import annotations

import random

import pytest
from long_context_world import WORDS

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.long_context.filling import fill
from megatron_v2pe.workshop.long_context.pipeline import Encoding


def words(count, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.mark.parametrize("tiles", [[], [1], [3, 1, 7]])
def test_a_conversation_has_the_tokens_training_makes_of_it(world, tiles):
    images = "\n".join(f"Image-{i}: <image>" for i in range(len(tiles)))
    turns = [("human", f"{images}\n{words(30)}"), ("gpt", "yes ."), ("human", " and ß 中文 ? "), ("gpt", "no 1 2")]
    assert world.budget.conversation(turns, tiles) == world.encoding.length(turns, tiles)


def test_tiles_follow_the_settings_of_the_run(world, tokenizer):
    assert world.encoding.tiles((84, 28)) == 4
    assert Encoding(tokenizer, "internlm2-chat", 28, 4, use_thumbnail=False).tiles((84, 28)) == 3
    assert Encoding(tokenizer, "internlm2-chat", 28, 4, dynamic_image_size=False).tiles((84, 28)) == 1
    assert Encoding(tokenizer, "internlm2-chat", 28, 4, max_dynamic_patch=2).tiles((84, 28)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "gone"}, "conversation template 'gone'"),
        ({"max_dynamic_patch": 2, "min_dynamic_patch": 3}, "min_dynamic_patch 3, max_dynamic_patch 2"),
    ],
)
def test_settings_that_cannot_be(tokenizer, change, message):
    with pytest.raises(ConfigError, match=message):
        Encoding(**{"tokenizer": tokenizer, "template": "Hermes-2", "tile_size": 28, "tokens_per_tile": 4, **change})


@pytest.mark.parametrize(
    "source", [words(900), "红色的方块在蓝色圆圈的左边。" * 20, "Zażółć — gęślą; jaźń! " * 20, "x" * 900]
)
def test_every_length_can_be_filled_exactly(world, source):
    budget = world.budget

    def count(text):
        return budget.conversation([("human", f"one .\n{text}\n. two" if text else "one .\n. two"), ("gpt", "yes")], [])

    shortest = count("") + 4
    for target in [*range(shortest, shortest + 60), shortest + 149, shortest + 400]:
        text = fill(budget, source, target, count)
        assert text is not None and count(text) == target, target
        assert text == text.strip()
    assert source.startswith(text[: int(len(text) * 0.8)])


def test_what_cannot_be_filled(world):
    def count(text):
        return 10 + world.budget.text(text)

    assert fill(world.budget, "a red square", 10, count) is None
    assert fill(world.budget, "a red square", 200, count) is None
    assert fill(world.budget, "", 20, count) is None
