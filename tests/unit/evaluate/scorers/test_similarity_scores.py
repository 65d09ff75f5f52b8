"""ANLS, ROUGE-L and soft accuracy against definitions written down a second time."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_v2pe.evaluate.families.milebench.rouge_l import rouge_l, rouge_l_reference
from megatron_v2pe.evaluate.scorer_names import SCORERS
from megatron_v2pe.evaluate.scorers.answer_words import CONTRACTIONS, NEEDLE_WORDS, VQA_WORDS, processed
from megatron_v2pe.evaluate.scorers.soft_accuracy import soft_accuracy

short_text = st.text(alphabet="abAB ßİ.é\n", max_size=9)


def distance(first: str, second: str) -> int:
    """Levenshtein's recursion, word for word."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return len(first) - i + len(second) - j
        if first[i] == second[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


@settings(deadline=None)
@given(short_text, st.lists(short_text, min_size=1, max_size=3))
def test_anls_against_a_second_edit_distance(prediction, answers):
    def plain(text):
        return " ".join(text.lower().split())

    def reference(answer):
        longer = max(len(prediction.upper()), len(answer.upper()))
        return 1 - (distance(plain(prediction), plain(answer)) / longer if longer else 0)

    def trimmed(text):  # marks alone stay
        return plain(text).rstrip(" .") or plain(text)

    def corrected(answer):
        longer = max(len(trimmed(prediction)), len(trimmed(answer)))
        return 1 - (distance(trimmed(prediction), trimmed(answer)) / longer if longer else 0)

    item = {"prediction": prediction, "answers": answers}
    for mode, score in (("reference", reference), ("corrected", corrected)):
        best = max(map(score, answers))
        assert SCORERS["docvqa"].score(item, mode) == pytest.approx(best if best >= 0.5 else 0)


def test_anls_groups_of_infovqa():
    items = [
        {"prediction": "x", "answers": ["x"], "answer_type": ["image span"], "evidence": ["figure", "map"]},
        {"prediction": "y", "answers": ["x"], "answer_type": ["image span"], "evidence": ["map"]},
    ]
    assert SCORERS["docvqa"].summary(items) == {
        "anls": 0.5,
        "answer_type": {"Image-Span": 0.5},
        "evidence": {"Figure": 1.0, "Map": 0.5},
    }


@given(st.lists(st.sampled_from("xyz"), min_size=10, max_size=10), st.sampled_from("xyzw"))
def test_soft_accuracy_leaves_each_person_out(answers, prediction):
    shares = [min(1, (answers[:n] + answers[n + 1 :]).count(prediction) / 3) for n in range(10)]
    expected = sum(shares) / 10 if prediction in answers else 0
    assert soft_accuracy(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_of_ten(matches, score):
    assert soft_accuracy("x", ["x"] * matches + ["y"] * (10 - matches)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 2 o'clock, isnt it?", "it 's 2 o'clock isn't it"),
        ("A dog. The cat", "dog cat"),
        ("3.5 m.", "3.5 m"),
        ("coca-cola", "coca cola"),
        ("a -b c-d", "b cd"),
        ("None of ten", "0 of 10"),
        ("twenty one", "twenty 1"),
        ("1,000", "1000"),
        ("x" + "." * 33, "x."),
        ("Id've", "id've"),
        ("", ""),
    ],
)
def test_the_vqa_normaliser(text, words):
    assert VQA_WORDS(text) == words


def test_the_needle_normaliser_counts_further():
    assert NEEDLE_WORDS("None of twenty ninety") == "none of 20 90"
    assert len(CONTRACTIONS) == 120


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Hello-world", "hello world"),
        ("1,000 apples", "1000 apples"),
        ("It's 3.5 m, ok.", "it's 3.5 m ok"),
        ("'\"quoted\"'", "quoted"),
        ("a\nb\tc", "a b c"),
    ],
)
def test_milebench_processing(text, plain):
    assert processed(text) == plain


words = st.lists(st.sampled_from("a b c d".split()), max_size=8)


@settings(deadline=None)
@given(words, words)
def test_rouge_l_against_the_longest_common_subsequence(said, true):
    @cache
    def common(i, j):
        if i == len(said) or j == len(true):
            return 0
        return common(i + 1, j + 1) + 1 if said[i] == true[j] else max(common(i + 1, j), common(i, j + 1))

    expected = 2 * common(0, 0) / (len(said) + len(true)) if said and true else 0
    assert rouge_l(" ".join(said), " ".join(true)) == pytest.approx(expected)


def test_rouge_l_of_the_reference_counts_sets():
    assert rouge_l_reference("the the cat", "the cat") == pytest.approx(0.999999995, abs=1e-12)
    assert rouge_l("the the cat", "the cat") == pytest.approx(0.8)
    assert rouge_l_reference("cat sat", "cat ran") == pytest.approx(0.5, abs=1e-8)
    assert rouge_l("", "x") == rouge_l("x", "") == 0


def test_a_text_too_long_for_the_rouge_package_is_named():
    item = {"kind": "rouge", "prediction": "a " * 1500, "answer": "a " * 1500}
    assert SCORERS["milebench"].judge(item)["error"].startswith("RecursionError")
    assert SCORERS["milebench"].score(item, "corrected") == 1
