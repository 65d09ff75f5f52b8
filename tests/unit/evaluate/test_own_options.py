"""Options of own questions, in the spellings of other tools: shown, scored by letter or text, or refused by line."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.scorer_names import scorer_of
from megatron_v2pe.evaluate.scorers import Mode

ASKED = "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
PLAIN = {"question": "What is it?"}


def read(folder, *rows):
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    benchmark = create(str(path))
    return benchmark, list(benchmark.questions(folder))


@pytest.mark.parametrize(
    "options",
    [
        {"options": ["a cat", "a dog"]},
        {"choices": ["a cat", "a dog"], "options": None},
        {"options": {"A": "a cat", "B": "a dog"}},
        {"options": {"A.": "a cat", "(b)": "a dog"}},
        {"options": "['a cat', 'a dog']"},
        {"A": "a cat", "B": "a dog", "C": None, "D": ""},
    ],
)
@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "a dog", "A dog", ["B"]])
def test_a_question_is_never_asked_without_its_options(tmp_path, caplog, options, answer):
    benchmark, (asked,) = read(tmp_path, {**PLAIN, **options, "answer": answer})
    assert asked.turns == (("human", ASKED),) and not caplog.records
    score = scorer_of(str(benchmark.scorer)).score
    modes: tuple[tuple[Mode, str], ...] = (
        ("corrected", "B. a dog"),
        ("corrected", "(B)"),
        ("reference", "b"),
        ("corrected", "A dog."),
    )
    for mode, said in modes:
        assert score(benchmark.item(asked, said), mode) == 1.0, said
    for said in ("A", "a cat", "A. a cat", ""):
        assert score(benchmark.item(asked, said), "corrected") == 0.0, said


def test_options_that_stand_in_the_question_are_not_shown_twice(tmp_path):
    text = "What is it?\n(A) a cat\n(B) a dog"
    _, (asked,) = read(tmp_path, {"question": text, "options": ["a cat", "a dog"], "answer": "A"})
    assert asked.turns == (("human", text),)
    _, (asked,) = read(tmp_path, {**PLAIN, "A": "x", "B": "y", "answer": "seven"})  # fields of another meaning
    assert asked.turns == (("human", "What is it?"),) and asked.facts["answers"] == "seven"


def test_images_and_context_stand_before_the_question_and_its_options(tmp_path):
    row = {**PLAIN, "options": ["a cat", "a dog"], "answer": "A", "image": "1.png", "context": "Once."}
    _, (asked,) = read(tmp_path, row)
    assert asked.turns == (("human", f"<image>\nOnce.\n{ASKED}"),)


def test_numbers_are_texts_of_options_before_they_are_anything_else(tmp_path):
    benchmark, (asked,) = read(tmp_path, {"question": "How many?", "options": [3, 4], "answer": 4})
    assert asked.facts["answers"] == ["B", "4"]
    assert scorer_of(str(benchmark.scorer)).score(benchmark.item(asked, "B"), "corrected") == 1.0
    _, (asked,) = read(tmp_path, {"question": "Which row?", "options": ["B", "C", "A"], "answer": "B"})
    assert asked.facts["answers"] == ["A"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"options": ["a cat", "a dog"], "answer": 0}, "the answer '0' is none of the options, A, B, .*by its letter"),
        ({"options": ["a cat", "a dog"], "answer": "C"}, "the answer 'C' is none of the options, A, B,"),
        ({"options": ["a cat", "a dog"], "answer": "A, B"}, "none of the options"),
        ({"options": ["a cat"], "answer": "A"}, "expected a list of texts"),
        ({"options": "A. a cat", "answer": "A"}, "expected a list of texts"),
        ({"options": [["a cat"], ["a dog"]], "answer": "A"}, "expected a list of texts"),
        ({"options": {"first": "a cat", "second": "a dog"}, "answer": "first"}, "expected a list of texts"),
        ({"options": ["1.png", "2.png"], "answer": "A", "image": "3.png"}, "'options' looks like media"),
    ],
)
def test_other_options_are_refused_by_line(tmp_path, row, words):
    with pytest.raises(DataError, match=rf"mine.jsonl:1: .*{words}"):
        read(tmp_path, {**PLAIN, **row})


@pytest.mark.parametrize("address", ["https://example.org/1.png", "file:///1.png", "s3://bucket/1.png"])
def test_an_address_is_refused_before_anything_is_asked(tmp_path, address):
    with pytest.raises(DataError, match=r"mine.jsonl:1: .*nothing is fetched from an address"):
        read(tmp_path, {**PLAIN, "answer": "a", "image": address})


def test_a_file_as_the_shell_names_it_is_found_beside_another_root(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    assert expand(["mine.jsonl"], tmp_path / "data") == [str(tmp_path / "mine.jsonl")]
    (tmp_path / "data" / "mine.jsonl").write_text("{}\n")
    assert expand(["mine.jsonl"], tmp_path / "data") == ["mine.jsonl"]  # what lies below the root comes first
    assert expand(["gone.jsonl"], tmp_path / "data") == ["gone.jsonl"]
