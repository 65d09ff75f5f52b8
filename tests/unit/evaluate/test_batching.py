"""Batches hold questions of like length and of one limit, in an order that a window bounds; errors stand alone."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate import batching
from megatron_v2pe.evaluate.batching import WINDOW, Ahead, batches, default_workers, windowed
from megatron_v2pe.evaluate.benchmark import Question

ALONE = SimpleNamespace(size=lambda: 1)
ENGINE = SimpleNamespace(stages=SimpleNamespace(first=True), own_tiles=lambda prompts: [one.tiles for one in prompts])


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(batching.topology, "model_copy_group", lambda: ALONE)


@pytest.fixture
def ahead():
    made = []

    def make(workers):
        made.append(Ahead(workers, 28))
        return made[-1]

    yield make
    for one in made:
        one.close()


def questions(lengths):
    return [Question(f"{number}", (("human", "x" * length),)) for number, length in enumerate(lengths)]


def encode(question):
    length = len(question.turns[0][1])
    if length == 0:
        raise DataError(f"{question.id}: no such image")
    return SimpleNamespace(input_ids=torch.zeros(length), tiles=torch.zeros(0))


def formed(asked, size, ahead, note=lambda ids: None):
    return [
        [one.question.id for one in batch]
        for batch in batches(asked, lambda question: 100, size, encode, ahead, ENGINE, note)
    ]


def test_windows_hold_questions_of_one_limit():
    limits = [100, 5, 100, 5]
    asked = [Question(str(n), (("human", "what"),), max_new_tokens=limit) for n, limit in enumerate(limits)]
    for size, expected in ((2, [["0", "2"], ["1", "3"]]), (1, [["0"], ["2"], ["1"], ["3"]])):
        found = [[one.id for one in window] for window in windowed(asked, lambda one: one.max_new_tokens, size)]
        assert found == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_neighbours_are_alike(ahead, workers):
    asked = questions([7, 1, 9, 3, 5, 8, 2, 6, 4, 10])
    window = 2 * WINDOW
    found = formed(asked, 2, ahead(workers))
    assert sum(found, []) == ["2", "5", "0", "7", "4", "3", "6", "1", "9", "8"]
    assert {*sum(found, [])[:window]} == {str(number) for number in range(window)}
    assert formed(asked, 1, ahead(workers)) == [[str(number)] for number in range(10)]  # nothing to be like


@pytest.mark.parametrize("workers", [0, 2])
def test_a_question_that_cannot_be_encoded_is_alone(ahead, workers):
    assert formed(questions([3, 0, 5, 0, 4]), 3, ahead(workers)) == [["2", "4", "0"], ["1"], ["3"]]


def test_everything_that_is_worked_on_is_noted(ahead):
    """With threads a run may end over a question that is only being prepared."""
    for workers in (0, 1):
        noted, working = [()], []

        def watched(question, working=working, noted=noted):
            working.append((question.id, noted[-1]))
            return encode(question)

        asked = questions(range(1, 30))
        for batch in batches(asked, lambda one: 1, 2, watched, ahead(workers), ENGINE, noted.append):
            assert {one.question.id for one in batch} <= {*noted[-1]}
        assert len(working) == len(asked) and all(name in then for name, then in working)


def test_the_next_window_is_encoded_while_one_is_asked(ahead):
    asked, encoded = questions([1] * 4 * WINDOW), threading.Event()

    def last(question):
        if question.id == str(3 * WINDOW - 1):
            encoded.set()
        return encode(question)

    run = batches(asked, lambda one: 1, 1, last, ahead(1), ENGINE, lambda ids: None)
    for _ in range(3 * WINDOW - 1):
        next(run)
    assert encoded.wait(60), "the next question has not been encoded"


def test_on_the_cpu_nothing_is_done_ahead(monkeypatch):
    assert default_workers(torch.device("cpu")) == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(batching.os, "cpu_count", lambda: 16)
    assert default_workers(torch.device("cuda")) == 7
    monkeypatch.setattr(batching.os, "cpu_count", lambda: 2)
    assert default_workers(torch.device("cuda")) == 1
