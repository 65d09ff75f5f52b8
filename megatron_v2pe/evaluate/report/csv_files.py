"""The numbers of a report as CSV files; two decimals, marks and notes in columns of their own.

A spreadsheet takes text that begins with =, +, - or @ for a formula, and runs it: such text has an apostrophe before
it, which spreadsheets do not show. Numbers stay numbers. Line breaks and control characters are spelt out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_v2pe.evaluate.report.audit import Check
from megatron_v2pe.evaluate.report.columns import TableLayout
from megatron_v2pe.evaluate.report.needle_grids import DEPTH_NAMES, NeedleGrid
from megatron_v2pe.evaluate.report.rounding import rounded
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import MODES, Judged, Scores
from megatron_v2pe.evaluate.report.series import Point, StrideGrid
from megatron_v2pe.evaluate.report.tables import Row, score_marks
from megatron_v2pe.foreign.printable import printable

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""With those of full width, which some spreadsheets take for the same."""
_SPACES = " \u00a0\u3000\ufeff"


def write_table(path: Path, layout: TableLayout, rows: Sequence[Row]) -> None:
    """Write one of the two tables: a line per row, empty where a table has a dash."""
    header = ["Model", "kind", "#Param", *layout.names, "marks", "notes"]
    lines: list[list[str]] = []
    for row in rows:
        cells = [row.cells[name] for name in layout.names]
        signed = row.kind == "difference"
        numbers = ["" if cell.value is None else rounded(cell.value, 2, signed) for cell in cells]
        named = list(zip(layout.names, cells, strict=True))
        marks = "; ".join(f"{name}: {cell.marks}" for name, cell in named if cell.marks)
        parts = [f"{name}: {cell.note}" for name, cell in named if cell.note]
        lines.append([row.name, row.kind, row.size, *numbers, marks, "; ".join([*parts, *row.notes])])
    _write(path, header, lines)


def write_scores(path: Path, scores: Scores) -> None:
    """Write every benchmark of every run in both modes, with how complete it is."""
    header = ["run", "benchmark", "mode", "score", "score of the answered", "questions", "missing", "failed", "limit"]
    header += ["all questions", "published questions", "left out", "source", "marks", "problem"]
    _write(
        path,
        header,
        (
            [
                *(run, name, mode, _number(score.value), _number(score.answered_value)),
                *(str(score.questions), str(score.missing), str(score.failed)),
                *("" if count is None else str(count) for count in (score.limit, score.of_all, score.published)),
                *(str(score.stopped), score.source, score_marks(score), score.problem or ""),
            ]
            for run in scores[MODES[0]]
            for name in scores[MODES[0]][run]
            for mode in MODES
            for score in (scores[mode][run][name],)
        ),
    )


def write_own(path: Path, answers: Iterable[tuple[EvaluationRun, str, Judged]]) -> None:
    """Write every answer to the user's own questions."""
    _write(
        path,
        ["run", "questions", "id", "question", "expected", "answered", "score", "error"],
        (
            [run.name, name, one.id, one.question, one.expected, one.answer or "", _number(100 * one.score)]
            + [one.error or ""]
            for run, name, one in answers
        ),
    )


def write_heat_maps(path: Path, grids: Iterable[tuple[str, str, str, str, NeedleGrid]]) -> None:
    """Write MM-NIAH's cells.

    Args:
        path: file to write.
        grids: run, suite, task, marks of the suite, and scores.
    """
    _write(
        path,
        ["run", "suite", "task", "length", "depth", "score", "samples", "marks of the suite"],
        (
            [run, suite, task, length, depth, _number(value), str(count), marks]
            for run, suite, task, marks, grid in grids
            for length, values, counts in zip(grid.lengths, grid.values, grid.counts, strict=True)
            for depth, value, count in zip(DEPTH_NAMES, values, counts, strict=True)
        ),
    )


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Write scores by length."""
    header = ["suite", "run", "stride", "length", "score", "tasks", "of", "questions", "unanswered", "marks"]
    _write(
        path,
        header,
        (
            [
                *(point.suite, point.run, point.stride, point.length, _number(point.value), str(point.parts)),
                *(str(point.of), str(point.questions), str(point.unanswered), point.marks),
            ]
            for point in points
        ),
    )


def write_strides(path: Path, grids: Iterable[StrideGrid]) -> None:
    """Write scores by stride and length."""
    _write(
        path,
        ["suite", "checkpoint", "stride", "length", "score", "marks of the suite"],
        (
            [grid.suite, grid.checkpoint, stride, length, _number(value), grid.marks]
            for grid in grids
            for stride, values in zip(grid.strides, grid.values, strict=True)
            for length, value in zip(grid.lengths, values, strict=True)
        ),
    )


def write_audit(path: Path, checks: Iterable[Check]) -> None:
    """Write every published average beside the mean of its columns."""
    header = ["table", "model", "average", "printed", "recomputed", "printed - recomputed", "columns", "of", "missing"]
    _write(
        path,
        [*header, "verdict"],
        (
            [
                *(check.table, check.model, check.average, "" if check.printed is None else str(check.printed)),
                "" if check.recomputed is None else rounded(check.recomputed, 4),
                "" if check.difference is None else rounded(check.difference, 4, signed=True),
                *(str(check.columns), str(check.of), "; ".join(check.missing), check.verdict),
            ]
            for check in checks
        ),
    )


def _number(value: float | None) -> str:
    return "" if value is None else rounded(value, 2)


def _write(path: Path, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([harmless(cell) for cell in line] for line in lines)


def harmless(cell: str) -> str:
    """Return a cell's text as a spreadsheet may read it: never a formula."""
    text = printable(cell)
    if _NUMBER.fullmatch(text) or text == "-" or not text.lstrip(_SPACES).startswith(_FORMULA):
        return text
    return f"'{text}"
