"""Which option a prediction names: the published first-letter rule and the careful reading."""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.families.milebench.choice import extract, option_letters
from megatron_v2pe.evaluate.families.mmmu.open_answers import is_right, parse_open
from megatron_v2pe.evaluate.families.mmmu.scorer import last_letter
from megatron_v2pe.evaluate.scorer_names import SCORERS
from megatron_v2pe.evaluate.scorers.multiple_choice import circular_accuracy, first_letter
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

OPTIONS = {"A": "a cat", "B": "a dog", "C": "a big dog", "D": "none of the above"}


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        (" b ", "b"),
        ("x", "x"),
        ("Both", "B"),
        ("A dog", "A"),
        ("I see a dog here", "B"),
        ("it is a big dog", "C"),
        ("none", "none"),
    ],
)
def test_the_first_letter_rule(prediction, letter):
    assert first_letter(prediction, OPTIONS) == letter


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B. a cat", "B"),
        ("b) a cat", "B"),
        ("(C) because", "C"),
        ("B, of course", "B"),
        ("C\nsince", "C"),
        ("The answer is C.", "C"),
        ("answer: (d)", "D"),
        ("I first thought the answer is A, but the answer is B", "B"),
        ("The correct option is D because A is not", "D"),
        ("答案是B", "B"),
        ("我选C。", "C"),
        ("Ｄ", "D"),
        ("a dog", "B"),
        ("A dog.", "B"),
        ("It is a big dog", "C"),
        ("it must be B then", "B"),
        ("it could be (A)", "A"),
        # ambiguous, or nothing
        ("", None),
        ("B or C", None),
        ("A", "A"),
        ("A man walks", None),
        ("the answer is a mystery", None),
        ("Both of them", None),
        ("a cat and a dog", None),
        ("not B", None),
        ("E", None),
        ("dogma", None),
    ],
)
def test_the_careful_reading(prediction, letter):
    assert named_letter(prediction, OPTIONS) == letter


def test_letters_without_texts():
    assert named_letter("(f) x", {"A": "cat"}, "ABCDEF") == "F"
    assert named_letter("cat", {"A": "cat"}, "ABCDEF") == "A"


OPTIONS_OF_MILEBENCH = {"A": "blastomycosis", "B": "red car", "C": "dog", "D": "a blue house"}


@pytest.mark.parametrize(
    ("processed", "letters"),
    [
        ("b red car", "B"),
        ("c. dog", "C"),
        ("", "C"),
        ("cat", "CA"),
        ("option d a blue house", "D"),
        ("b", "B"),
        ("the answer is b", "AB"),
        ("redcar", "B"),
        ("zzz", ""),
    ],
)
def test_milebench_extraction(processed, letters):
    assert extract(processed, OPTIONS_OF_MILEBENCH) == letters


def test_letters_beyond_z():
    letters = option_letters(80)
    assert (letters[25], letters[26], letters[51], letters[52]) == ("Z", "AA", "AZ", "BA")
    options = dict(zip(letters, [f"text {n} end" for n in range(80)], strict=True))
    assert extract("aa text 26 end", options) == "A"
    assert extract("ba", options) == "BA"


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("I think (A) or (B)", "B"),
        ("A B", "B"),
        ("it could well be a big dog over there", "C"),
        ("nothing", "A"),
    ],
)
def test_mmmu_reads_the_last_letter(response, letter):
    assert last_letter(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "parsed"),
    [
        ("The answer is 1,234.5", [1234.0, 1234.5, 234.5]),
        ("so x = 3", [3.0]),
        ("1e3", [1000.0, 3.0]),
        ("a", [" a", "a "]),
        ("It is red.\nThus the result is blue.", ["blue", "red."]),
        ("", [""]),
    ],
)
def test_free_answers(response, parsed):
    assert parse_open(response) == parsed


def test_free_answers_are_compared_as_numbers_or_inside_text():
    assert is_right("3", parse_open("it is 3.001"))
    assert is_right(["4", "blue whale"], parse_open("a big blue whale"))
    assert not is_right("a", parse_open("banana"))
    assert not is_right("x", parse_open(""))


def test_sentences_are_split_in_the_corrected_form_only():
    text = "It is red. Thus it is blue. Done"
    assert parse_open(text) == ["blue. done"]
    assert parse_open(text, corrected=True) == ["blue", "red"]


def test_a_question_counts_only_if_all_of_its_rotations_are_right():
    assert circular_accuracy([7, 1_000_007, 8, 1_000_008], [True, True, True, False]) == 0.5
    items = [
        {"prediction": "A", "answer": answer, "options": OPTIONS, "index": index, "category": "ocr"}
        for index, answer in ((7, "A"), (1_000_007, "B"), (8, "A"))
    ]
    summary = SCORERS["mmbench"].summary(items)
    assert summary == {"accuracy": pytest.approx(2 / 3), "circular": 0.5, "category": {"ocr": pytest.approx(2 / 3)}}
    assert SCORERS["mmbench"].headline(items) == 50
