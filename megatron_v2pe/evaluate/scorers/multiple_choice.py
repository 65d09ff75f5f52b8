"""Which share of multiple-choice questions is answered rightly: MMBench, CCBench, ScienceQA and Video-MME.

Source: V2PE's evaluators, which read a letter by the first-letter rule (also MMMU): the text is stripped; one character
is the answer; else a first character that is an option's letter is; else the first option whose text stands in the
prediction; else the whole prediction. MMBench asks a question once for every rotation of its options, as index,
index + 1,000,000, ...: CircularEval (Liu et al., 2023) counts a question only if all of its rotations are right. The
published number of MMBench is circular; V2PE's code computes none and writes the table the official server reads.

Defects of the reference: an empty prediction and an option that is no text stop the rule; any prediction that begins
with an option's letter counts as that letter (`A dog`, `Both`); `cat` is found in `catalogue`. The corrected form reads
letters carefully (`named_letter` of `stated_option`) and compares them in capitals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
)
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

ROTATION = 1_000_000
"""What separates the indices of a question's rotations."""
Percent = Callable[[Summary, Sequence[Judgement]], float]
_GROUPS = ("category", "l2-category")


def first_letter(prediction: str, options: Mapping[str, str]) -> str:
    """Return what the first-letter rule reads; raises what the published code raises."""
    text = prediction.strip()
    if len(text) == 1 or text[0] in options:
        return text[0]
    for letter, option in options.items():
        if option in text:
            return letter
    return text


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


def multiple_choice(name: str, percent: Percent = _percent) -> Scorer:
    """Return a scorer of multiple choice.

    Its items: `prediction`, `options`, `answer`, and where known `index`, `category`, `l2-category`.

    Args:
        name: of the scorer.
        percent: reads the one number papers print out of a summary; by default the circular one where there is one.
    """
    return Scorer(name, _reference, _corrected, _summarise, percent)
