"""Long-VQA's texts: rectification, singulars, and the values of WikiTableQuestions."""

from __future__ import annotations

import pytest

from megatron_v2pe.evaluate.families.long_vqa.lexicon import (
    english_words,
    irregular_nouns,
    nouns,
    singular,
    without_ing,
)
from megatron_v2pe.evaluate.families.long_vqa.rectify import rectify, rectify_corrected
from megatron_v2pe.evaluate.families.long_vqa.wtq import normalise, read, same_denotation


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("dogs", "dog"),
        ("geese", "goose"),
        ("churches", "church"),
        ("aardwolves", "aardwolf"),
        ("abaci", "abacus"),
        ("axes", "ax"),
        ("berries", "berry"),
        ("men", "men"),
        ("is", "is"),
        ("us", "u"),
        ("as", "a"),
        ("was", "wa"),
        ("hardrock", "hardrock"),
        ("glass", "glass"),
        ("", ""),
        ("s", "s"),
    ],
)
def test_singulars_are_wordnets(word, lemma):
    assert singular(word) == lemma


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("running", "run"),
        ("riding", "rid"),
        ("making", "make"),
        ("Sitting", "sit"),
        ("king", "king"),
        ("xqzing", "xqzing"),
    ],
)
def test_words_lose_their_ending(word, root):
    assert without_ing(word) == root


def test_the_word_lists_are_whole():
    assert len(english_words()) == 235_970
    assert len(nouns()) == 57_506 and len(irregular_nouns()) == 2010


@pytest.mark.parametrize(
    ("task", "answer", "reference", "corrected"),
    [
        ("gqa", "Running dogs", "run dog", "running dog"),
        ("gqa", "12 apples", "12", "12"),
        ("gqa", "[3:4]", "0.75", "0.75"),
        ("gqa", "twenty-one men", "twenty-one men", "twenty-one men"),
        ("gqa", "100%", "100", "100"),
        ("gqa", "No way", "no", "no"),
        ("gqa", "North America", "no", "north america"),
        ("gqa", "Nothing.", "no", "nothing"),
        ("gqa", "yesterday", "yes", "yesterday"),
        ("gqa", "was it Four of us", "wa it 4 of u", "was it 4 of us"),
        ("gqa", "1,234", "1234", "1234"),
        ("gqa", "1/0", "1/0", "1/0"),
        ("gqa", "a/b", "a/b", "a/b"),
        ("svqa", "B. cat", "B", "b"),
        ("svqa", "Apple", "A", "apple"),
        ("tabfact", "Yes, it is", "Yes", "yes"),
        ("tabfact", "Now", "No", "now"),
        ("docvqa", " J. Smith. ", "J. Smith", "j. smith"),
        ("unknown", "50%", "50%", "50%"),
    ],
)
def test_rectified(task, answer, reference, corrected):
    assert rectify(task, answer) == reference
    assert rectify_corrected(task, answer) == corrected


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ('"Foo" (bar)', "foo"),
        ("Café[1]", "cafe"),
        ("virginia†‡*", "virginia"),
        ("A  b.", "a b"),
        ("it‘s – “x”", 'it\'s - "x"'),
        ("(all of it)", "(all of it)"),
    ],
)
def test_wtq_texts(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("predicted", "true", "same"),
    [
        (["3.0"], ["3"], True),
        (["10.0000001"], ["10"], True),
        (["10.00001"], ["10"], False),
        (["2004-xx-xx"], ["2004"], True),
        (["2004-05-xx"], ["2004"], False),
        (["2004-05-06"], ["2004-5-6"], True),
        (["xx-xx-xx"], ["xx-xx-xx"], True),
        (["b", "a"], ["A", "B"], True),
        (["a"], ["a", "b"], False),
        (["a", "b", "b"], ["a", "b"], True),
        (["nan"], ["nan"], True),
    ],
)
def test_wtq_values(predicted, true, same):
    assert same_denotation(predicted, true) is same


def test_a_date_without_month_and_day_is_a_number():
    assert read("2004-xx-xx").meaning == 2004
    assert read("xx-05-xx").meaning == (-1, 5, -1)
    assert read("2004-13-01").meaning == "2004-13-01"
