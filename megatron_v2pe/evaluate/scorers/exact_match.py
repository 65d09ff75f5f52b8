"""Whether a prediction is the true answer: exact match (AI2D, OCR-VQA, your own questions).

Source: V2PE's evaluator. Both texts are stripped and compared in lower case; of several true answers the best counts.

Defects of the reference: a trailing dot makes an answer wrong (`Cat.` for `cat`). The corrected form compares what an
answer states (`stated_answer`) with marks and quotes around it dropped, on both sides; where a true answer is a letter,
as in AI2D, it reads letters as `stated_option` does.
"""

from __future__ import annotations

from string import ascii_uppercase

from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Scorer,
    as_text,
    field,
    mean_summary,
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain
from megatron_v2pe.evaluate.scorers.stated_option import named_letter
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
    said = plain(clean_answer(prediction) if letters else read_short_or_yes_no(prediction, truths, plain))
    return {"score": float(any(said == plain(truth) for truth in truths))}


EXACT = Scorer("ocrvqa", _reference, _corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers` (one or several), and `options` where answers are letters and texts are known."""
