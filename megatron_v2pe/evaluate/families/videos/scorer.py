"""How MVBench's twenty video tasks are answered.

Source: V2PE's evaluator. The truth is `(A) its text`. With `Answer: ` deleted and in lower case, a prediction is right
if its first word without dots is part of the truth's first word, `(a)`, or holds it. Percent per task, and of all
questions as `Avg`.

Defects of the reference: what is part of `(a)` is right: nothing at all, a dot, a bracket, and any sentence that begins
with the article `a`; a truth without text stops it. The corrected form reads letters carefully (see `stated_option`)
and takes the truth's text for its letter; its `Avg` is the mean of the tasks, as the benchmark's authors compute it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    mean,
)
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

TASKS = (
    "Action Sequence",
    "Action Prediction",
    "Action Antonym",
    "Fine-grained Action",
    "Unexpected Action",
    "Object Existence",
    "Object Interaction",
    "Object Shuffle",
    "Moving Direction",
    "Action Localization",
    "Scene Transition",
    "Action Count",
    "Moving Count",
    "Moving Attribute",
    "State Change",
    "Fine-grained Pose",
    "Character Order",
    "Egocentric Navigation",
    "Episodic Reasoning",
    "Counterfactual Inference",
)
LETTERS = "ABCDEFGH"
_TRUTH = re.compile(r"\s*\(([A-Z])\)\s*(.*)", re.DOTALL)


def loose_match(prediction: str, truth: str) -> bool:
    """Whether a prediction is right, as the reference decides it."""
    said = prediction.replace("Answer: ", "").lower().split(" ")[0]
    option, *content = truth.lower().split(" ")
    if not " ".join(content):
        raise IndexError("string index out of range")
    return said.replace(".", "") in option or option in said


def _reference(item: Item) -> Judgement:
    right = loose_match(field(item, "prediction"), field(item, "answer"))
    return {"correct": right, "score": float(right)}


def _corrected(item: Item) -> Judgement:
    truth = _TRUTH.fullmatch(str(field(item, "answer")))
    if truth is None:
        raise DataError(f"MVBench answer {item['answer']!r}: it is a letter in brackets and its text")
    options = dict(zip(LETTERS, item.get("candidates") or (), strict=False)) or {truth[1]: truth[2]}
    right = named_letter(as_text(field(item, "prediction")), options, LETTERS) == truth[1]
    return {"correct": right, "score": float(right)}


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    tasks: dict[str, list[float]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            tasks.setdefault(field(item, "task_type"), []).append(judgement["score"])
    summary: Summary = {task: mean(scores) * 100 for task, scores in tasks.items()}
    if mode == "reference":
        average = mean([score for scores in tasks.values() for score in scores]) * 100
    else:
        average = mean(list(summary.values()))
    return {**summary, "Avg": average, **first_error(judgements)}


MVBENCH = Scorer("mvbench", _reference, _corrected, _summarise, lambda summary, judgements: summary["Avg"])
"""Items: `prediction`, `answer` (`(A) text`), `task_type`, and where known `candidates`."""
SCORERS = (MVBENCH,)
