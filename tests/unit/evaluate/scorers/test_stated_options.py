"""Which option an answer states that explains itself: in the styles of real models, with the right reading.

A rejected option and one that is only restated are not the answer; a stated answer wins over a later mention; what
stays open is no answer. Every line is tried with every scorer that reads letters. The long tables of answers are
the text files of the folder `stated_options/`: a letter, or `-` where the answer states none, and the answer as a JSON
string.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_v2pe.evaluate.scorer_names import SCORERS
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

OPTIONS = {"A": "a blue square", "B": "a red circle", "C": "a green triangle", "D": "a yellow star"}
PHOTO = {"A": "vitamin B", "B": "hepatitis B", "C": "vitamin C", "D": "none of them"}


def cases(table: str) -> list[tuple[str, str | None]]:
    """Return (answer, letter or None) for each line of a table; empty lines and lines that begin with `# ` are none."""
    lines = (Path(__file__).parent / "stated_options" / f"{table}.txt").read_text("utf-8").split("\n")
    pairs = [line.split("  ", 1) for line in lines if line and not line.startswith("# ")]
    return [(json.loads(answer), None if letter == "-" else letter) for letter, answer in pairs]


LETTERS = [*cases("letters"), *cases("letters_in_other_words")]
"""Answers in which letters alone decide."""

TEXTS = cases("texts")
"""Answers in which an option's text decides, where it is known."""


def item(name: str, answer: str, truth: str) -> dict:
    choice = {"prediction": answer, "options": OPTIONS, "answer": truth}
    return {
        "seed": {**choice, "question_type_id": 1},
        "mmbench": choice,
        "scienceqa": choice,
        "mmmu": {**choice, "question_type": "multiple-choice"},
        "mmmu_full": {**choice, "question_type": "multiple-choice", "data_id": "validation_Art_1"},
        "mvbench": {
            "prediction": answer,
            "answer": f"({truth}) {OPTIONS[truth]}",
            "candidates": list(OPTIONS.values()),
            "task_type": "x",
        },
        "milebench": {
            "prediction": answer,
            "kind": "multichoice",
            "answer": OPTIONS[truth],
            "choices": list(OPTIONS.values()),
        },
        "mm_niah": {"prediction": answer, "answer": "ABCD".index(truth)},
        "ocrvqa": {"prediction": answer, "answers": truth},
        "longvqa": {"prediction": answer, "task": "svqa", "answer": truth},
    }[name]


WITH_TEXTS = ("seed", "mmbench", "scienceqa", "mmmu", "mmmu_full", "mvbench", "milebench")
WITHOUT_TEXTS = ("mm_niah", "ocrvqa", "longvqa")


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_letters(answer, letter):
    assert named_letter(answer, OPTIONS) == letter
    assert named_letter(answer, {}, "ABCD") == letter


@pytest.mark.parametrize(("answer", "letter"), TEXTS)
def test_texts(answer, letter):
    assert named_letter(answer, OPTIONS) == letter


@pytest.mark.parametrize("name", [*WITH_TEXTS, *WITHOUT_TEXTS])
def test_every_scorer_of_choices_reads_alike(name):
    scorer = SCORERS[name]
    most = 100.0 if name == "longvqa" else 1.0
    lines = LETTERS + TEXTS if name in WITH_TEXTS else LETTERS
    wrong = [
        (answer, truth, letter)
        for answer, letter in lines
        for truth in OPTIONS
        if scorer.score(item(name, answer, truth), "corrected") != most * (letter == truth)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("vitamin B", "A"),
        ("hepatitis B", "B"),
        ("Vitamin C.", "C"),
        ("It is hepatitis B, not vitamin B.", "B"),
        ("none of them", "D"),
        ("B", "B"),
        ("The answer is B. hepatitis B", "B"),
    ],
)
def test_letters_inside_options(answer, letter):
    assert named_letter(answer, PHOTO) == letter


def test_options_beyond_d():
    many = {letter: f"thing {number}" for number, letter in enumerate("ABCDEFGHI")}
    assert named_letter("I", many) == "I"
    assert named_letter("I think it is F.", many) == "F"
    assert named_letter("The answer is I.", many) == "I"
    assert named_letter("I am not sure.", many) is None
    assert named_letter("The answer is I think E", many) == "E"


COLOURS = {"A": "blue", "B": "red", "C": "green", "D": "yellow"}


@pytest.mark.parametrize(("answer", "letter"), cases("options_of_one_word"))
def test_options_of_one_word(answer, letter):
    assert named_letter(answer, COLOURS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Yes", "A"),
        ("no, there is none", "B"),
        ("Yes, not a dog but a cat", "A"),
        ("(B) No", "B"),
        ("The answer is no.", "B"),
        ("Not sure", None),
        ("A. Yes\nB. No\nAnswer: B", "B"),
        ("B. No, because A. Yes is wrong", "B"),
        ("It is not true.", None),
    ],
)
def test_options_that_are_yes_and_no(answer, letter):
    assert named_letter(answer, {"A": "Yes", "B": "No"}) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A. not visible", "A"),
        ("B. incorrect", "B"),
        ("B) wrong way", "B"),
        ("C. No parking", "C"),
        ("D. Not sure", "D"),
        ("(A) False", "A"),
        ("A: not a dog", "A"),
    ],
)
def test_a_negation_that_is_the_option_s_text_rejects_nothing(answer, letter):
    assert named_letter(answer, {}, "ABCD") == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("There are 13 apples.", "B"),
        ("There are 3 apples, not 13.", "A"),
        ("I count 3 + 10 = 13 apples. The answer is 13.", "B"),
        ("3.", "A"),
        ("3.5", None),
        ("30%", None),
    ],
)
def test_options_that_are_numbers(answer, letter):
    assert named_letter(answer, {"A": "3", "B": "13", "C": "30", "D": "0"}) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The man isn't moving.", "C"),
        ("C. The man isn't moving", "C"),
        ("The correct answer is D. It cannot be determined from the image.", "D"),
        ("The man is not walking; a man is running", "B"),
        ("B: A man is running, he is not walking", "B"),
    ],
)
def test_options_that_are_sentences(answer, letter):
    options = {"A": "A man is walking", "B": "A man is running", "C": "The man isn't moving"}
    assert named_letter(answer, {**options, "D": "It cannot be determined"}) == letter
