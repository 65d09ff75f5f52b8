"""Whether a number is within five percent of the true one, or a text equal to it: relaxed accuracy (ChartQA, Long-VQA).

`$1,200` is read as 1200 and `5%` as 0.05; the tolerance is relative to the truth; a truth of zero asks for zero, and
equal texts are right whatever they mean. What the published evaluation does otherwise: `families/documents/scorer.py`.
"""

from __future__ import annotations

import re

TOLERANCE = 0.05
_MONEY = re.compile(r"([+-]?)[$€£¥]\s*(\d[\d,.]*)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")


def as_number(text: str) -> float | None:
    """Return the number a text is, `5%` being 0.05; None if it is none."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


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
