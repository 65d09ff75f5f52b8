"""Needles in text: one answer each, found only where it is hidden."""

from __future__ import annotations

import re

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.workshop.long_context.draws import Draws, TokenRange
from megatron_v2pe.workshop.long_context.needles import TEXT_TASKS
from megatron_v2pe.workshop.long_context.text_needles import text_needles


def many(task, fakes=2, count=60):
    return [text_needles(task, Draws(5, number), fakes) for number in range(count)]


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_the_same_key_gives_the_same_needles(task):
    assert many(task) == many(task)
    assert len({needles.statements for needles in many(task)}) == 60
    assert text_needles(task, Draws(5, 0), 2, attempt=1) != text_needles(task, Draws(5, 0), 2)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_no_name_or_number_is_given_out_twice(task):
    for needles in many(task, fakes=4):
        assert len(set(needles.unique)) == len(needles.unique)
        for word in needles.unique:
            assert sum(word.lower() in other.lower() for other in needles.unique) == 1
        assert len(needles.fakes) == 4


@pytest.mark.parametrize("task", ["text_retrieval", "text_retrieval_fake"])
def test_retrieval_has_one_answer(task):
    kinds = set()
    for needles in many(task):
        [statement] = needles.statements
        assert statement.count(needles.answer) == 1 and needles.answer not in " ".join(needles.fakes)
        assert needles.answer not in needles.question
        kinds.add(tuple(needles.question.split()[:2]))
        subject = next(word for word in needles.unique if word in needles.question)
        assert subject in statement and subject not in " ".join(needles.fakes)
    assert len(kinds) == 3


def test_counting_answers_in_the_order_of_the_statements():
    for needles in many("text_counting"):
        assert 2 <= len(needles.answer) <= 5
        assert [int(re.findall(r"\d+", text)[0]) for text in needles.statements] == needles.answer
        assert needles.answering() == str(needles.answer)


def test_reasoning_takes_more_than_one_statement():
    kinds = set()
    for needles in many("text_reasoning"):
        assert len(needles.statements) == 3
        joined = " ".join(needles.statements)
        assert joined.count(needles.answer) == 1
        if "race" in needles.question:
            kinds.add("race")
            before = dict(re.findall(r"In the race (\w+) arrived before (\w+)\.", joined))
            first = next(name for name in before if name not in before.values())
            last = next(name for name in before.values() if name not in before)
            assert needles.answer == (last if " last " in needles.question else first)
        else:
            kinds.add("letter")
            writer = re.findall(r"letter that (\w+) wrote", needles.question)[0]
            assert not any(writer in text and needles.answer in text for text in needles.statements)
    assert kinds == {"race", "letter"}


@pytest.mark.parametrize(("text", "low", "high"), [("7", 7, 7), ("16384:32768", 16384, 32768)])
def test_ranges_of_tokens(text, low, high):
    tokens = TokenRange.parse(text)
    drawn = [tokens.draw(Draws(1, number)) for number in range(200)]
    assert all(low <= value <= high for value in drawn)
    assert drawn == [tokens.draw(Draws(1, number)) for number in range(200)]
    if low < high:
        assert min(drawn) < low + 0.1 * (high - low) and max(drawn) > high - 0.1 * (high - low)


@pytest.mark.parametrize("text", ["", "many", "0", "9:5", "1:2:3", "-5", "3:"])
def test_no_ranges_of_tokens(text):
    with pytest.raises(ConfigError, match="target tokens"):
        TokenRange.parse(text)
