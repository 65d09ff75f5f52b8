"""How near a prediction is to one of the true answers, letter by letter: ANLS (DocVQA, InfoVQA, ST-VQA).

Source: Biten et al., 2019, and the script of the Robust Reading Competition. With d the Levenshtein distance and l the
length of the longer text, the similarity is 1 - d / l; of several answers the best counts, below 0.5 it is 0. DocVQA
and InfoVQA compare in lower case with single spaces; ST-VQA in lower case, stripped.

Defects of the reference: DocVQA's d is taken of the normalised texts, but l of the raw ones in capitals, so that spaces
around an answer, or a letter that becomes two in capitals, raise the score; ST-VQA stops at two empty texts. The
corrected forms take both from the normalised texts, of what an answer states (`stated_answer`), marks and quotes around
it dropped on both sides; two empty texts are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

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
from megatron_v2pe.evaluate.scorers.stated_answer import read_short
from megatron_v2pe.evaluate.scorers.undressed import plain

THRESHOLD = 0.5
GROUPS = {
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


def similarity(prediction: str, truth: str) -> float:
    """Return 1 - d / l of two texts, 1 of two empty ones."""
    longer = max(len(prediction), len(truth))
    return 1.0 - Levenshtein.distance(prediction, truth) / longer if longer else 1.0


def single_spaced(text: str) -> str:
    """Return a text in lower case with single spaces."""
    return " ".join(text.strip().lower().split())


def _docvqa_reference(item: Item) -> Judgement:
    prediction = field(item, "prediction")
    distances = []
    for answer in field(item, "answers"):
        distance = Levenshtein.distance(single_spaced(answer), single_spaced(prediction))
        length = max(len(answer.upper()), len(prediction.upper()))
        distances.append(distance / length if length else 0.0)
    score = 1 - min(distances)
    return {"score": score if score >= THRESHOLD else 0.0}


def _docvqa_corrected(item: Item) -> Judgement:
    truths = true_texts(item, "answers")
    prediction = plain(read_short(as_text(field(item, "prediction")), truths, plain))
    score = max(similarity(prediction, plain(answer)) for answer in truths)
    return {"score": score if score >= THRESHOLD else 0.0}


def _stvqa_reference(item: Item) -> Judgement:
    scores = []
    for answer in field(item, "answers"):
        prediction, truth = field(item, "prediction").lower().strip(), answer.lower().strip()
        score = 1 - Levenshtein.distance(prediction, truth) / max(len(prediction), len(truth))
        scores.append(score if score >= THRESHOLD else 0.0)
    return {"score": max(scores)}


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `anls`, and InfoVQA's groups where the items name them."""
    summary: Summary = {"anls": mean(judged(judgements)), **first_error(judgements)}
    for name, groups in GROUPS.items():
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


DOCVQA = Scorer("docvqa", _docvqa_reference, _docvqa_corrected, _summarise, percent_of("anls"))
"""Items: `prediction`, `answers`, and for InfoVQA's groups `answer_type`, `evidence`, `operation/reasoning`."""
STVQA_ANLS = Scorer("stvqa_anls", _stvqa_reference, _docvqa_corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers`."""
