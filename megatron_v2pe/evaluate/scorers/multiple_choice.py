"""Which share of multiple-choice questions is answered rightly: MMBench, CCBench and ScienceQA.

Source: V2PE's evaluators; `option_letter` says how a letter is read. MMBench asks a question once for every rotation of
its options, as index, index + 1,000,000, ...: CircularEval (Liu et al., 2023) counts a question only if all of its
rotations are right. The published number of MMBench is circular; V2PE's code computes none and writes the table the
official server reads.

Defects of the reference: those of the first-letter rule. The corrected form reads letters carefully and compares them
in capitals.
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
    as_text,
    field,
    first_error,
    judged,
    mean,
    percent_of,
)
from megatron_v2pe.evaluate.scorers.option_letter import first_letter, named_letter

ROTATION = 1_000_000
"""What separates the indices of a question's rotations."""
_GROUPS = ("category", "l2-category")


def options_of(item: Item) -> Mapping[str, Any]:
    """Return the options of an item by their letters.

    Raises:
        DataError: `options` is no dictionary.
    """
    options = field(item, "options")
    if not isinstance(options, Mapping):
        raise DataError(f"options {options!r}: they are a dictionary of letters and texts")
    return options


def _reference(item: Item) -> Judgement:
    letter = first_letter(field(item, "prediction"), options_of(item))
    return _judgement(letter, letter == field(item, "answer"))


def _corrected(item: Item) -> Judgement:
    letter = named_letter(as_text(field(item, "prediction")), options_of(item)) or ""
    return _judgement(letter, letter == str(field(item, "answer")).strip().upper())


def _judgement(letter: str, right: bool) -> Judgement:
    return {"processed": letter, "correct": right, "score": float(right)}


def circular_accuracy(indices: Sequence[int], right: Sequence[bool]) -> float:
    """Return the share of questions all of whose rotations are right."""
    questions: dict[int, bool] = {}
    for index, answered in zip(indices, right, strict=True):
        question = int(index) % ROTATION
        questions[question] = questions.get(question, True) and answered
    return mean([float(answered) for answered in questions.values()])


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `accuracy`; `circular` where items have indices; accuracies by category where they name one."""
    summary: Summary = {"accuracy": mean(judged(judgements)), **first_error(judgements)}
    if all("index" in item for item in items):
        right = [bool(judgement.get("correct")) for judgement in judgements]
        summary["circular"] = circular_accuracy([item["index"] for item in items], right)
    for name in _GROUPS:
        groups: dict[str, list[float]] = {}
        for item, judgement in zip(items, judgements, strict=True):
            if name in item and "score" in judgement:
                groups.setdefault(item[name], []).append(judgement["score"])
        if groups:
            summary[name] = {group: mean(scores) for group, scores in groups.items()}
    return summary


def _percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    return 100.0 * summary["circular" if "circular" in summary else "accuracy"]


MMBENCH = Scorer("mmbench", _reference, _corrected, _summarise, _percent)
"""Items: `prediction`, `options`, `answer`, and where known `index`, `category`, `l2-category`."""
SCIENCEQA = Scorer("scienceqa", _reference, _corrected, _summarise, percent_of("accuracy"))
"""Items: `prediction`, `options`, `answer`."""
