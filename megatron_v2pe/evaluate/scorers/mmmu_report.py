"""How a model fares on MMMU by subject, by discipline and over all: the official report on the validation set.

Source: the MMMU evaluation's report as V2PE runs it. A question's subject is its id without the first and the last
field. Accuracies are over questions, at every level, with three decimals; disciplines and subjects come in the
published order, subjects without questions are left out, disciplines without give 0.

Predictions are final answers, as V2PE's evaluator writes them to its result file; an item that has `options` is read by
the first-letter rule first, as that evaluator does. Defects of the reference: see `mmmu`; a subject that is none of the
thirty is dropped without a word. The corrected form reads as `mmmu` does and refuses such a subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    field,
    first_error,
    judged,
    mean,
)
from megatron_v2pe.evaluate.scorers.mmmu import CHOICE, MMMU, equals
from megatron_v2pe.evaluate.scorers.mmmu_open import is_right, parse_open
from megatron_v2pe.evaluate.scorers.multiple_choice import options_of
from megatron_v2pe.evaluate.scorers.option_letter import first_letter

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = tuple(subject for subjects in DISCIPLINES.values() for subject in subjects)


def join_answers(items: Sequence[Item], answers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return items with the truth of the official `answer_dict_val.json` beside each prediction.

    Raises:
        DataError: an item's question has no answer there.
    """
    missing = [field(item, "data_id") for item in items if item["data_id"] not in answers]
    if missing:
        raise DataError(f"MMMU: {len(missing)} of {len(items)} questions have no answer, the first is {missing[0]}")
    return [
        {
            **item,
            "answer": answers[item["data_id"]]["ground_truth"],
            "question_type": answers[item["data_id"]]["question_type"],
        }
        for item in items
    ]


def exact_equality(items: Sequence[Item]) -> float:
    """Return the percentage of final answers that equal the truth character by character, free answers too."""
    return 100.0 * mean([float(equals(field(item, "prediction"), field(item, "answer"))) for item in items])


def _reference(item: Item) -> Judgement:
    prediction, truth = field(item, "prediction"), field(item, "answer")
    if field(item, "question_type") != CHOICE:
        return {"score": float(is_right(truth, parse_open(prediction)))}
    letter = first_letter(prediction, options_of(item)) if item.get("options") else prediction
    return {"score": float(equals(letter, truth))}


def _corrected(item: Item) -> Judgement:
    if field(item, "question_type") == CHOICE and not item.get("options"):
        item = {**item, "options": dict.fromkeys("ABCDEFGHIJ", "")}
    return MMMU.corrected(item)


def _subject(item: Item) -> str:
    return "_".join(str(field(item, "data_id")).split("_")[1:-1])


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    scores: dict[str, list[float]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            scores.setdefault(_subject(item), []).append(judgement["score"])
    unknown = sorted(set(scores) - set(SUBJECTS))
    if unknown and mode == "corrected":
        raise DataError(f"MMMU: {', '.join(unknown)} are none of the thirty subjects")
    summary: Summary = {}
    for discipline, subjects in DISCIPLINES.items():
        present = [scores[subject] for subject in subjects if subject in scores]
        summary["Overall-" + discipline] = _line(present)
        summary |= {subject: _line([scores[subject]]) for subject in subjects if subject in scores}
    summary["Overall"] = _line([scores[subject] for subject in sorted(SUBJECTS) if subject in scores])
    return summary | first_error(judgements)


def _line(groups: Sequence[Sequence[float]]) -> Summary:
    """Return number and accuracy of some subjects, added up as the reference does, so that it rounds alike."""
    count = sum(len(group) for group in groups)
    right = sum(mean(group) * len(group) for group in groups)
    return {"num": count, "acc": round(right / count, 3) if count else 0}


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Return the accuracy over all questions, not rounded."""
    return 100.0 * mean(judged(judgements))


MMMU_REPORT = Scorer("mmmu_full", _reference, _corrected, _summarise, _percent)
"""Items: `data_id`, `prediction`, `question_type`, `answer`, and `options` if predictions are raw responses."""
