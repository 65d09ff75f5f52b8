"""Whether a prediction is the true answer: exact match (AI2D, OCR-VQA), and GQA's.

Source: V2PE's evaluator. Both texts are stripped and compared in lower case; of several true answers the best counts.
GQA: the prediction loses its trailing dots, then its capitals, and must equal the truth, as the official script says.

Defects of the reference: a trailing dot makes an answer wrong (`Cat.` for `cat`), and spaces a GQA answer. The
corrected form drops trailing dots, and spaces around and between words, on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_text,
    field,
    first_error,
    judged,
    mean,
    mean_summary,
    percent_of,
    true_texts,
)


def plain(text: str) -> str:
    """Return an answer in lower case with single spaces, without trailing dots."""
    return " ".join(text.lower().split()).rstrip(". ")


def _reference(item: Item) -> Judgement:
    prediction, answers = field(item, "prediction"), field(item, "answers")
    truths = [answers] if isinstance(answers, str) else answers
    return {"score": max([float(prediction.strip().lower() == truth.strip().lower()) for truth in truths])}


def _corrected(item: Item) -> Judgement:
    prediction = plain(as_text(field(item, "prediction")))
    return {"score": float(any(prediction == plain(truth) for truth in true_texts(item, "answers")))}


def _gqa_reference(item: Item) -> Judgement:
    converted = field(item, "prediction").rstrip(".").lower()
    return _with_score({"converted": converted}, item, converted == item.get("answer"))


def _gqa_corrected(item: Item) -> Judgement:
    converted = plain(as_text(field(item, "prediction")))
    truths = true_texts(item, "answer") if "answer" in item else []
    return _with_score({"converted": converted}, item, any(converted == plain(truth) for truth in truths))


def _with_score(judgement: Judgement, item: Item, right: bool) -> Judgement:
    """Add the score if the item has a truth."""
    return judgement | ({"score": float(right)} if "answer" in item else {})


def _gqa_summary(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `accuracy` of the items that have a truth; nothing if none has."""
    scores = judged(judgements)
    return ({"accuracy": mean(scores)} if scores else {}) | first_error(judgements)


EXACT = Scorer("ocrvqa", _reference, _corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers` (one or several)."""
GQA = Scorer("gqa_convert", _gqa_reference, _gqa_corrected, _gqa_summary, percent_of("accuracy"))
"""Items: `prediction`, and `answer` where there is one. The judgement's `converted` goes to GQA's own script."""
