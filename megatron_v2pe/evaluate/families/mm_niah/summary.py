"""How MM-NIAH's scores depend on the length of the context and the depth of the needle.

Source: MM-NIAH's own report as V2PE's code extends it. Context lengths fall into bins that begin at 1k, 2k, ..., 64k
(the last has no end), depths into fifths; several depths of a sample are averaged, 1.0 belongs to the last fifth. A
task's number in a context bin is the mean over its five depth cells, with six decimals. `overall` is the mean over
tasks where there are six, `average` the mean over bins where there is one task.

Defects of the reference: a cell without samples counts as 0; samples below 1k are left out of the bins but not of
`weighted_avg_acc`; the example-weighted numbers are those of the last file read (here of the last task by name); a
depth of 0.6 falls one cell short of where it belongs, by rounding; the means of image and text tasks the paper prints
are not computed; tasks of the long variant stop it. The corrected form leaves empty cells out, has bins below 1k and
beyond 64k, weights over all tasks, and gives the means of the image tasks, the text tasks and all.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.base import Item, Judgement, Mode, Summary, field, first_error, mean

BINS = (1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000, 40000, 48000, 64000)
LONG_BINS = (*BINS, 128_000, 256_000, 512_000, 1_000_000)
"""The bins, and those of the long variant's four sets."""
DEPTHS = 5
SPLITS = ("rag-val", "val", "rag-test", "test")
TASKS = tuple(f"{task}-{needle}" for task in ("retrieval", "counting", "reasoning") for needle in ("text", "image"))

_BESIDES = ("overall", "average", "weighted_acc", "sample_number_array", "weighted_avg_acc", "context_ranges")
"""What a file of the reference holds beside the tasks."""

Cells = list[list[list[float]]]
"""Scores by context bin, then by depth."""


def summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `scores_{split}.json` for each split in reference mode; means by task and kind in corrected mode."""
    tasks: dict[str, list[tuple[Item, float]]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            tasks.setdefault(field(item, "task"), []).append((item, judgement["score"]))
    numbers = _reference_files(tasks) if mode == "reference" else _corrected_means(tasks)
    return numbers | first_error(judgements)


def depth_of(item: Item) -> float:
    """Return where the needle stands, 0 to 1; of several needles the mean.

    Raises:
        DataError: it is no such number.
    """
    depth = field(item, "placed_depth")
    value = mean(depth) if isinstance(depth, list) else depth
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise DataError(f"MM-NIAH placed_depth {depth!r}: it is a number from 0 to 1, or a list of such")
    return value


def needle_of(item: Item) -> tuple[float, float]:
    """Return the length of the context of an item in tokens, and the depth of its needle, 0 to 1."""
    return float(item["context_length"]), depth_of(item)


def _reference_fifth(depth: float) -> int:
    return int((0.99 if depth == 1.0 else depth) / 0.2)


def _fifth(depth: float) -> int:
    return min(int(depth * DEPTHS), DEPTHS - 1)


def _cells(samples: Iterable[tuple[Item, float]], bins: Sequence[int], fifth: Callable[[float], int]) -> Cells:
    """Sort scores into cells; the first row is below the first bin."""
    cells: Cells = [[[] for _ in range(DEPTHS)] for _ in range(len(bins) + 1)]
    for item, score in samples:
        row = bisect.bisect_right(bins, field(item, "context_length"))
        cells[row][fifth(depth_of(item))].append(score)
    return cells


def _reference_files(tasks: dict[str, list[tuple[Item, float]]]) -> Summary:
    strange = sorted(task for task in tasks if not task.endswith(SPLITS))
    if strange:
        return {"error": f"RuntimeError: {strange[0]!r} ends with none of {', '.join(SPLITS)}"}
    files: dict[str, dict[str, list[float]]] = {}
    last: Cells = []
    for task in sorted(tasks):
        last = _cells(tasks[task], BINS, _reference_fifth)
        split = next(split for split in SPLITS if task.endswith(split))
        scores = [round(mean([mean(cell) for cell in row]), 6) for row in last[1:]]
        files.setdefault(f"scores_{split}.json", {})[task] = scores
    return {name: _file(scores, last) for name, scores in files.items()}


def _file(scores: dict[str, list[float]], last: Cells) -> Summary:
    """Return one of the reference's files.

    Args:
        scores: of each task, by context bin.
        last: cells of the last task read, of whatever split.
    """
    content: Summary = dict(scores)
    overall = [mean(column) for column in zip(*scores.values(), strict=True)]
    if len(scores) == len(TASKS):
        content["overall"] = [round(value, 6) for value in overall]
    elif len(scores) == 1:
        content["average"] = mean(overall)
    rows = [[score for cell in row for score in cell] for row in last]
    content["weighted_acc"] = [mean(row) for row in rows[1:]]
    content["sample_number_array"] = [float(len(row)) for row in rows[1:]]
    content["weighted_avg_acc"] = mean([score for row in rows for score in row])
    content["context_ranges"] = [f"{edge // 1000}k" for edge in BINS]
    return content


def _corrected_means(tasks: dict[str, list[tuple[Item, float]]]) -> Summary:
    """Return of each task its numbers by context bin and their mean; the means of image tasks, text tasks and all."""
    names = ["<1k", *(f"{edge // 1000}k" if edge < 1_000_000 else "1M" for edge in LONG_BINS)]
    by_task: Summary = {}
    for task, samples in tasks.items():
        rows = {
            name: mean([mean(cell) for cell in row if cell])
            for name, row in zip(names, _cells(samples, LONG_BINS, _fifth), strict=True)
            if any(row)
        }
        by_task[task] = {"by_context": rows, "mean": mean(list(rows.values()))}
    kinds = {kind: [by_task[task]["mean"] for task in tasks if f"-{kind}" in task] for kind in ("image", "text")}
    return {
        "tasks": by_task,
        **{kind: mean(values) for kind, values in kinds.items() if values},
        "overall": mean([numbers["mean"] for numbers in by_task.values()]),
        "weighted": mean([score for samples in tasks.values() for _, score in samples]),
    }


def percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Return the mean over tasks and context bins; over the bins of all splits' files in reference mode."""
    if "overall" in summary:
        return 100.0 * summary["overall"]
    if "error" in summary and not any(name.startswith("scores_") for name in summary):
        raise DataError(f"MM-NIAH: the published evaluation stops with {summary['error']}")
    rows = [
        row
        for name, content in summary.items()
        if name.startswith("scores_")
        for task, row in content.items()
        if task not in _BESIDES
    ]
    return 100.0 * mean([value for row in rows for value in row])
