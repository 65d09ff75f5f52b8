"""How many of ten people gave the predicted answer: VQA soft accuracy (TextVQA, VQAv2, OK-VQA, VizWiz, Long-VQA).

Source: Antol et al., 2015. Over the ten people in turn, the answer is worth min(1, matches among the other nine / 3);
the score is the mean of the ten.
"""

from __future__ import annotations

from collections.abc import Sequence

PEOPLE = 10
"""Answers to a question in the published files."""


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the score of a prediction, all texts being normalised.

    A person who gave the predicted answer sees one match less than the others do.
    """
    matches = answers.count(prediction)
    if len(answers) == 1 or matches == 0:
        return float(matches)
    agree = min(1.0, (matches - 1) / 3)
    differ = min(1.0, matches / 3)
    return sum(agree if answer == prediction else differ for answer in answers) / len(answers)
