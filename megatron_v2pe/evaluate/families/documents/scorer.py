"""How answers of DocVQA and InfoVQA (ANLS) and of ChartQA (relaxed accuracy) are scored; AI2D is an exact match.

DocVQA, InfoVQA. Source: Biten et al., 2019, and the script of the Robust Reading Competition. The best similarity
(`anls`) of the answer to one of the true ones counts, below 0.5 it is 0; both in lower case with single spaces.
Defects of the reference: d is taken of the normalised texts, but l of the raw ones in capitals, so that spaces around
an answer, or a letter that becomes two in capitals, raise the score. The corrected form takes both from the normalised
texts, of what an answer states (`stated_answer`), marks and quotes around it dropped on both sides; two empty texts are
equal.

ChartQA. Source: Masry et al., 2022, after Methani et al., 2020. Both texts are read as numbers, `5%` as 0.05; if that
works and the truth is not 0, |prediction - truth| / |truth| <= 0.05 decides, otherwise equality in any case. Of several
true answers the best counts. The published "ChartQA" is the mean of the human and the augmented split. Defects of the
reference: it passes the arguments in the wrong order, so the tolerance is relative to the prediction (20 for 21.02 is
wrong, 21.02 for 20 is right), the prediction is stripped but not the truth, and a prediction of zero is compared as
text, as is one that is no finite number but equal to the truth. The corrected form (`relaxed_accuracy`) reads what an
answer states, without marks and quotes around it, and is relative to the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from megatron_v2pe.evaluate.scorers.anls import THRESHOLD, anls_of_stated, single_spaced
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
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import plain
from megatron_v2pe.evaluate.scorers.relaxed_accuracy import TOLERANCE, as_number, relaxed_match
from megatron_v2pe.evaluate.scorers.yes_no import read_short_or_yes_no

QUESTION_GROUPS = {
    "answer_type": {
        "image span": "Image-Span",
        "question span": "Question-Span",
        "multiple spans": "Multi-Span",
        "non span": "None span",
    },
    "evidence": {
        "table/list": "Table/list",
        "textual": "Text",
        "photo/pciture/visual_objects": "Visual/Layout",
        "figure": "Figure",
        "map": "Map",
    },
    "operation/reasoning": {"comparison": "Sorting", "arithmetic": "Arithmetic", "counting": "Counting"},
}
"""Fields by which InfoVQA's annotation (the file "withQT") groups questions, their values and how these are printed."""


def _docvqa_reference(item: Item) -> Judgement:
    prediction = field(item, "prediction")
    distances = []
    for answer in field(item, "answers"):
        distance = Levenshtein.distance(single_spaced(answer), single_spaced(prediction))
        length = max(len(answer.upper()), len(prediction.upper()))
        distances.append(distance / length if length else 0.0)
    score = 1 - min(distances)
    return {"score": score if score >= THRESHOLD else 0.0}


def _summarise_groups(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `anls`, and InfoVQA's groups where the items name them."""
    summary: Summary = {"anls": mean(judged(judgements)), **first_error(judgements)}
    for name, groups in QUESTION_GROUPS.items():
        means = _group_means(items, judgements, name, groups)
        if means:
            summary[name] = means
    return summary


def _group_means(
    items: Sequence[Item], judgements: Sequence[Judgement], name: str, groups: dict[str, str]
) -> dict[str, Any]:
    scores: dict[str, list[float]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        for value in item.get(name) or ():
            if value in groups and "score" in judgement:
                scores.setdefault(value, []).append(judgement["score"])
    return {printed: mean(scores[value]) for value, printed in groups.items() if value in scores}


def swapped_relaxed_match(prediction: str, truth: str) -> bool:
    """Whether a prediction is right, the tolerance being relative to the prediction: the reference's order."""
    predicted, true = as_number(prediction), as_number(truth)
    if true is not None and predicted:
        return abs(true - predicted) / abs(predicted) <= TOLERANCE
    return truth.lower() == prediction.lower()


def _chartqa_reference(item: Item) -> Judgement:
    prediction = field(item, "prediction").strip()
    answers = field(item, "answers")
    truths = [answers] if isinstance(answers, str) else answers
    return {"score": float(max([swapped_relaxed_match(prediction, truth) for truth in truths]))}


def _chartqa_corrected(item: Item) -> Judgement:
    truths = true_texts(item, "answers")
    prediction = plain(read_short_or_yes_no(as_text(field(item, "prediction")), truths, plain))
    return {"score": float(any(relaxed_match(prediction, plain(truth)) for truth in truths))}


def _summarise_splits(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
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


def _chartqa_percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    return 100.0 * summary["average" if "average" in summary else "accuracy"]


DOCVQA = Scorer("docvqa", _docvqa_reference, anls_of_stated, _summarise_groups, percent_of("anls"))
"""Items: `prediction`, `answers`, and for InfoVQA's groups `answer_type`, `evidence`, `operation/reasoning`."""
CHARTQA = Scorer("chartqa", _chartqa_reference, _chartqa_corrected, _summarise_splits, _chartqa_percent)
"""Items: `prediction`, `answers` (one or several), and `split` (`human` or `augmented`) for the published mean."""
SCORERS = (DOCVQA, CHARTQA)
SAME_AS = dict.fromkeys(("infovqa", "anls"), "docvqa")
