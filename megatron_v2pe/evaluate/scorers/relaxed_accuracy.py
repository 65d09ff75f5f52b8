"""Whether a number is within five percent of the true one, or a text equal to it: relaxed accuracy (ChartQA).

Source: Masry et al., 2022, after Methani et al., 2020. Both texts are read as numbers, `5%` as 0.05; if that works and
the truth is not 0, |prediction - truth| / |truth| <= 0.05 decides, otherwise equality in any case. Of several true
answers the best counts. The published "ChartQA" is the mean of the human and the augmented split.

Defects of the reference: it passes the arguments in the wrong order, so the tolerance is relative to the prediction
(20 for 21.02 is wrong, 21.02 for 20 is right), the prediction is stripped but not the truth, and a prediction of zero
is compared as text, as is one that is no finite number but equal to the truth. The corrected form reads what an answer
states (`stated_answer`), without marks and quotes around it, reads `$1,200` as 1200, and is
relative to the truth; a truth of zero asks for zero, and equal texts are right whatever they mean.
"""

from __future__ import annotations

import re
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
    true_texts,
)
from megatron_v2pe.evaluate.scorers.undressed import plain
from megatron_v2pe.evaluate.scorers.yes_no import read_short_or_yes_no

TOLERANCE = 0.05
_MONEY = re.compile(r"([+-]?)[$€£¥]\s*(\d[\d,.]*)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")


def as_number(text: str) -> float | None:
    """Return the number a text is, `5%` being 0.05; None if it is none."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def swapped_relaxed_match(prediction: str, truth: str) -> bool:
    """Whether a prediction is right, the tolerance being relative to the prediction: the reference's order."""
    predicted, true = as_number(prediction), as_number(truth)
    if true is not None and predicted:
        return abs(true - predicted) / abs(predicted) <= TOLERANCE
    return truth.lower() == prediction.lower()


def relaxed_match(prediction: str, truth: str) -> bool:
    """Whether a prediction is right, the tolerance being relative to the truth."""
    prediction, truth = prediction.strip().lower(), truth.strip().lower()
    predicted, true = (as_number(_without_signs(text)) for text in (prediction, truth))
    if prediction == truth or predicted is None or true is None:
        return prediction == truth
    return abs(predicted - true) <= TOLERANCE * abs(true)


def _without_signs(text: str) -> str:
    """Return a text without a currency before its number and without commas between its thousands."""
    money = _MONEY.fullmatch(text)
    text = f"{money[1]}{money[2]}" if money else text
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _reference(item: Item) -> Judgement:
    prediction = field(item, "prediction").strip()
    answers = field(item, "answers")
    truths = [answers] if isinstance(answers, str) else answers
    return {"score": float(max([swapped_relaxed_match(prediction, truth) for truth in truths]))}


def _corrected(item: Item) -> Judgement:
    truths = true_texts(item, "answers")
    prediction = plain(read_short_or_yes_no(as_text(field(item, "prediction")), truths, plain))
    return {"score": float(any(relaxed_match(prediction, plain(truth)) for truth in truths))}


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `accuracy`; where items name their `split`, each split's and the mean of the splits as `average`."""
    summary: Summary = {"accuracy": mean(judged(judgements)), **first_error(judgements)}
    splits: dict[str, list[Judgement]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "split" in item:
            splits.setdefault(item["split"], []).append(judgement)
    if splits:
        means = {split: mean(judged(members)) for split, members in splits.items()}
        summary |= means | {"average": mean(list(means.values()))}
    return summary


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    return 100.0 * summary["average" if "average" in summary else "accuracy"]


CHARTQA = Scorer("chartqa", _reference, _corrected, _summarise, _percent)
"""Items: `prediction`, `answers` (one or several), and `split` (`human` or `augmented`) for the published mean."""
