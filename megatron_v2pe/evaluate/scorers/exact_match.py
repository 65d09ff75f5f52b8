"""Whether a prediction is the true answer: exact match (AI2D, OCR-VQA), and GQA's.

Source: V2PE's evaluator. Both texts are stripped and compared in lower case; of several true answers the best counts.
GQA: the prediction loses its trailing dots, then its capitals, and must equal the truth, as the official script says.

Defects of the reference: a trailing dot makes an answer wrong (`Cat.` for `cat`), and spaces a GQA answer. The
corrected form compares what an answer states (`stated_answer`) with marks and quotes around it dropped, on both sides;
where a true answer is a letter, as in AI2D, it reads letters as `stated_option` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

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
from megatron_v2pe.evaluate.scorers.option_letter import named_letter
from megatron_v2pe.evaluate.scorers.undressed import plain, undressed
from megatron_v2pe.evaluate.scorers.yes_no import read_short_or_yes_no


def _reference(item: Item) -> Judgement:
    prediction, answers = field(item, "prediction"), field(item, "answers")
    truths = [answers] if isinstance(answers, str) else answers
    return {"score": max([float(prediction.strip().lower() == truth.strip().lower()) for truth in truths])}


def _corrected(item: Item) -> Judgement:
    prediction, truths = as_text(field(item, "prediction")), true_texts(item, "answers")
    letters = {truth.strip().upper() for truth in truths} & set(ascii_uppercase)
    if letters and named_letter(prediction, item.get("options") or {}, ascii_uppercase) in letters:
        return {"score": 1.0}
    said = plain(undressed(prediction) if letters else read_short_or_yes_no(prediction, truths, plain))
    return {"score": float(any(said == plain(truth) for truth in truths))}


def _gqa_reference(item: Item) -> Judgement:
    converted = field(item, "prediction").rstrip(".").lower()
    return _with_score({"converted": converted}, item, converted == item.get("answer"))


def _gqa_corrected(item: Item) -> Judgement:
    truths = true_texts(item, "answer") if "answer" in item else []
    converted = plain(read_short_or_yes_no(as_text(field(item, "prediction")), truths, plain))
    return _with_score({"converted": converted}, item, any(converted == plain(truth) for truth in truths))


def _with_score(judgement: Judgement, item: Item, right: bool) -> Judgement:
    """Add the score if the item has a truth."""
    return judgement | ({"score": float(right)} if "answer" in item else {})


def _gqa_summary(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `accuracy` of the items that have a truth; nothing if none has."""
    scores = judged(judgements)
    return ({"accuracy": mean(scores)} if scores else {}) | first_error(judgements)


EXACT = Scorer("ocrvqa", _reference, _corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers` (one or several), and `options` where answers are letters and texts are known."""
GQA = Scorer("gqa_convert", _gqa_reference, _gqa_corrected, _gqa_summary, percent_of("accuracy"))
"""Items: `prediction`, and `answer` where there is one. The judgement's `converted` goes to GQA's own script."""
