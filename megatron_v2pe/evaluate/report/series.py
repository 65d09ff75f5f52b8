"""Scores over the length of the context, and over stride and length where runs of one checkpoint differ in stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_v2pe.evaluate.families.long_vqa import questions as long_vqa
from megatron_v2pe.evaluate.families.mm_niah import questions as mm_niah
from megatron_v2pe.evaluate.report.needle_grids import NeedleGrid, grid_of, grid_of_rows
from megatron_v2pe.evaluate.report.runs import EvaluationRun, stride_order
from megatron_v2pe.evaluate.report.scoring import Score, Scores
from megatron_v2pe.evaluate.report.tables import in_order, marks_of, score_marks
from megatron_v2pe.evaluate.scorers import Mode
from megatron_v2pe.evaluate.scorers.base import mean

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Point:
    """The score of a run at a length."""

    suite: str
    """`MM-NIAH val`, `MM-NIAH test`, `MM-NIAH long` or `Long-VQA`."""
    run: str
    stride: str
    """The run's stride, see `EvaluationRun.stride`."""
    length: str
    """`32k`; of MM-NIAH the lower edge of the bin."""
    value: float
    """Percent: the unweighted mean of the parts."""
    parts: int
    """Tasks with a number."""
    of: int
    """Tasks there are."""
    questions: int
    unanswered: int
    """Missing or failed, of the parts' questions at all lengths for MM-NIAH."""
    marks: str
    """Letters of `tables.MARKS`."""


def task_grids(scores: Mapping[str, Score], split: str, mode: Mode) -> dict[str, NeedleGrid]:
    """Return MM-NIAH's scores by length and depth of every task that has samples: `retrieval-image` and so on."""
    found: dict[str, NeedleGrid] = {}
    for task, needle in mm_niah.TASKS:
        score = scores.get(f"mmniah_{split}_{task}_{needle}")
        if score is not None and score.needles:
            found[f"{task}-{needle}"] = grid_of(score.needles, mode)
    return found


def needle_set(split: str, task: str) -> str:
    """Return the benchmark of a task, `retrieval-image`, and split of MM-NIAH."""
    return f"mmniah_{split}_{task.replace('-', '_')}"


def long_grid(scores: Mapping[str, Score], mode: Mode) -> NeedleGrid | None:
    """Return the scores of MM-NIAH's long variant by set and depth; None where there are none."""
    rows = {
        length: score.needles
        for length in mm_niah.LENGTHS
        if (score := scores.get(f"mmniah_long_{length.lower()}")) is not None and score.needles
    }
    return grid_of_rows(dict(rows), mode) if rows else None


def points(runs: Sequence[EvaluationRun], scores: Scores, mode: Mode) -> list[Point]:
    """Return every score by length, suite by suite, run by run."""
    found = [point for split in SPLITS for run in runs for point in _needle_points(run, scores, split, mode)]
    for run in runs:
        for length in mm_niah.LENGTHS:
            names = [f"mmniah_long_{length.lower()}"]
            found += _point("MM-NIAH long", run, length, names, scores[mode][run.name])
    for run in runs:
        for length in long_vqa.LENGTHS:
            names = [f"longvqa_{length}k_{task}" for task in long_vqa.TASKS]
            found += _point("Long-VQA", run, f"{length}k", names, scores[mode][run.name])
    return found


def _needle_points(run: EvaluationRun, scores: Scores, split: str, mode: Mode) -> list[Point]:
    mine = scores[mode][run.name]
    grids = task_grids(mine, split, mode)
    whole = [mine[needle_set(split, task)] for task in grids]
    marks = marks_of(whole)
    found: list[Point] = []
    for length in sorted({name for grid in grids.values() for name in grid.lengths}, key=length_order):
        rows = [(grid, grid.lengths.index(length)) for grid in grids.values() if length in grid.lengths]
        values = [value for grid, row in rows if (value := grid.row_score(row, mode)) is not None]
        if not values:
            continue
        partial = "p" if len(values) < len(mm_niah.TASKS) else ""
        found.append(
            Point(
                f"MM-NIAH {split}",
                run.name,
                run.stride,
                length,
                mean(values),
                len(values),
                len(mm_niah.TASKS),
                sum(sum(grid.counts[row]) for grid, row in rows),
                sum(score.missing + score.failed for score in whole),
                in_order({*marks, partial}),
            )
        )
    return found


def _point(
    suite: str, run: EvaluationRun, length: str, names: Sequence[str], scores: Mapping[str, Score]
) -> list[Point]:
    there = [scores[name] for name in names if name in scores and scores[name].value is not None]
    if not there:
        return []
    partial = "p" if len(there) < len(names) else ""
    return [
        Point(
            suite,
            run.name,
            run.stride,
            length,
            mean([score.value for score in there if score.value is not None]),
            len(there),
            len(names),
            sum(score.questions for score in there),
            sum(score.missing + score.failed for score in there),
            in_order({partial, *"".join(map(score_marks, there))}),
        )
    ]


@dataclass(frozen=True)
class StrideGrid:
    """A suite's scores by stride and length, of the runs of one checkpoint."""

    suite: str
    checkpoint: str
    strides: tuple[str, ...]
    """The stride of each row; with the run's name where two have one stride."""
    lengths: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """Percent, [strides, lengths]."""
    marks: str
    """Marks of all its numbers together."""


def stride_grids(runs: Sequence[EvaluationRun], found: Sequence[Point]) -> list[StrideGrid]:
    """Return a grid for each suite and checkpoint that runs with two or more strides share."""
    grids: list[StrideGrid] = []
    for checkpoint in dict.fromkeys(run.checkpoint for run in runs):
        mine = {run.name: run for run in runs if run.checkpoint == checkpoint}
        for suite in dict.fromkeys(point.suite for point in found):
            there = [point for point in found if point.suite == suite and point.run in mine]
            present = {point.run for point in there}
            names = sorted((name for name in mine if name in present), key=lambda name: stride_order(mine[name].stride))
            strides = [mine[name].stride for name in names]
            if len(set(strides)) < 2:
                continue
            value = {(point.run, point.length): point.value for point in there}
            lengths = sorted({point.length for point in there}, key=length_order)
            labels = [
                stride if strides.count(stride) == 1 else f"{stride} ({name})"
                for name, stride in zip(names, strides, strict=True)
            ]
            values = tuple(tuple(value.get((name, length)) for length in lengths) for name in names)
            marks = in_order(set("".join(point.marks for point in there)))
            grids.append(StrideGrid(suite, checkpoint, tuple(labels), tuple(lengths), values, marks))
    return grids


def length_order(length: str) -> float:
    """Return tokens a length stands for, by which lengths are sorted: `<1k`, `32k`, `1M`."""
    number = float(length.strip("<kM")) * (1_000_000 if length.endswith("M") else 1000)
    return number - 1 if length.startswith("<") else number
