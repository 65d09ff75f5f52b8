"""The rows of the two tables: published ones with recomputed averages, ours, and the differences between them.

Every number knows its marks. A column some of whose parts are missing is no number to compare or to average with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_v2pe.evaluate.report.audit import check_averages
from megatron_v2pe.evaluate.report.columns import Average, Column, TableLayout
from megatron_v2pe.evaluate.report.published import PUBLISHED, PublishedRow, recomputed
from megatron_v2pe.evaluate.report.rounding import rounded
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import Score, Scores
from megatron_v2pe.evaluate.scorers import Mode
from megatron_v2pe.evaluate.scorers.base import mean

MARKS = {
    "i": "incomplete: questions without an answer, failed ones (both count as answered by nothing), only the first N "
    "were asked, answers edited since, or the data are not the published ones",
    "u": "how many questions are published is not known here: nothing tells a part of them from the whole",
    "p": "some of the column's benchmarks are missing",
    "d": "development split in place of the test split",
    "r": "taken from the run's results.json, not computed from answers",
    "m": "of the other mode: results.json has no other",
    "s": "the published evaluation stops at some of the answers; they are left out",
    "e": "cells of length and depth without samples, which the published evaluation counts as 0",
    "v": "a server's score",
    "x": "the printed average does not follow from its columns, see the audit",
}
"""Letter -> meaning, in the order they are written."""
_MOST_LISTED = 6
Kind = Literal["published", "run", "other mode", "difference"]


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    value: float | None = None
    """Percent; of a difference in points. None: a dash."""
    marks: str = ""
    """Letters of `MARKS`."""
    note: str = ""
    """What a dash or a mark stands for: `8 of 9`."""

    @property
    def whole(self) -> bool:
        """Return whether it is a number of all its parts."""
        return self.value is not None and "p" not in self.marks


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    name: str
    kind: Kind
    size: str
    """Parameters, as published."""
    cells: dict[str, Cell]
    """By column."""
    notes: tuple[str, ...] = field(default=())
    """What is to be said of single columns."""


def published_rows(layout: TableLayout) -> list[Row]:
    """Return the published rows of a table, their averages recomputed."""
    wrong = {(check.model, check.average) for check in check_averages() if check.verdict == "does not follow"}
    return [_published(layout, row, wrong) for row in PUBLISHED[layout.name]]


def _published(layout: TableLayout, row: PublishedRow, wrong: set[tuple[str, str]]) -> Row:
    means, cells, notes = recomputed(layout, row), dict[str, Cell](), list[str]()
    for column in layout.columns:
        if isinstance(column, Column):
            number = row.printed[column.name]
            cells[column.name] = Cell(None if number is None else float(number))
            continue
        average, printed = means[column.name], row.printed[column.name]
        there = sum(row.printed[name] is not None for name in column.of)
        cells[column.name] = Cell(
            None if average is None else float(average),
            "x" if (row.model, column.name) in wrong else "",
            f"{there} of {len(column.of)}" if there < len(column.of) else "",
        )
        if printed is not None and average is not None and rounded(average) != str(printed):
            notes.append(f"{column.name} is printed as {printed}")
    return Row(row.model, "published", row.size, cells, tuple(notes))


def run_rows(layout: TableLayout, run: EvaluationRun, scores: Scores, mode: Mode, against: Row | None) -> list[Row]:
    """Return a run's row, a second one in the other mode if numbers of it look different, and the differences.

    Args:
        layout: the table.
        run: the run.
        scores: of all runs.
        mode: of the first row and of the differences.
        against: published row the differences are to; None: none.
    """
    other: Mode = "corrected" if mode == "reference" else "reference"
    row = _row(layout, run.name, "run", scores[mode][run.name])
    second = _row(layout, f"{run.name} ({other})", "other mode", scores[other][run.name])
    rows = [row]
    if any(_looks_different(row.cells[name], second.cells[name]) for name in layout.names):
        rows.append(second)
    if against is not None and any(cell.value is not None for cell in row.cells.values()):
        rows.append(_difference(row, against))
    return rows


def _row(layout: TableLayout, name: str, kind: Kind, scores: Mapping[str, Score]) -> Row:
    cells, notes = dict[str, Cell](), list[str]()
    for column in layout.columns:
        if isinstance(column, Average):
            cells[column.name] = _average(column, cells)
            continue
        parts, mark = column.parts, ""
        if column.stand_in and not _scored(parts, scores):
            parts, mark = column.stand_in, "d"
        cells[column.name] = _cell(parts, scores, mark)
        notes += _notes(column.name, parts, scores)
    return Row(name, kind, "-", cells, tuple(notes))


def _scored(parts: Sequence[str], scores: Mapping[str, Score]) -> list[float]:
    return [value for part in parts if part in scores and (value := scores[part].value) is not None]


def _cell(parts: Sequence[str], scores: Mapping[str, Score], mark: str) -> Cell:
    values = _scored(parts, scores)
    if not values:
        return Cell()
    marks, note = {mark}, ""
    for part in parts:
        if part in scores and scores[part].value is not None:
            marks |= set(score_marks(scores[part]))
    if len(values) < len(parts):
        marks.add("p")
        note = f"{len(values)} of {len(parts)}"
    return Cell(mean(values), in_order(marks), note)


def score_marks(score: Score) -> str:
    """Return the marks of a benchmark's score."""
    marks = {
        "i": score.incomplete,
        "u": score.unchecked,
        "r": score.source == "results",
        "m": score.other_mode,
        "s": score.stopped > 0,
        "e": score.empty_cells > 0,
        "v": score.source == "server",
    }
    return in_order({mark for mark, holds in marks.items() if holds})


def marks_of(scores: Iterable[Score]) -> str:
    """Return the marks of several scores together."""
    return in_order(set("".join(map(score_marks, scores))))


def in_order(marks: set[str]) -> str:
    """Return marks as they are written."""
    return "".join(mark for mark in MARKS if mark in marks)


def _notes(column: str, parts: Sequence[str], scores: Mapping[str, Score]) -> list[str]:
    absent, parts_of = list[str](), dict[str, list[str]]()
    for part in parts:
        if part not in scores:
            absent.append(part)
            continue
        score = scores[part]
        remarks = [score.completeness] if score.completeness else []
        remarks += [f"{score.stopped} of {score.questions} left out"] if score.stopped else []
        remarks += [f"{score.empty_cells} empty cells"] if score.empty_cells else []
        remarks += [score.problem] if score.problem and score.value is None else []
        if remarks:
            parts_of.setdefault(", ".join(remarks), []).append(part)
    notes = [f"{column}: no {listed(absent)}"] if absent and len(absent) < len(parts) else []
    return [*notes, *(f"{column}: {listed(some)}: {remarks}" for remarks, some in parts_of.items())]


def listed(names: Sequence[str]) -> str:
    """Return names in a row, of many the first and how many more there are."""
    shown = names if len(names) <= _MOST_LISTED else names[: _MOST_LISTED - 1]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def _average(average: Average, cells: Mapping[str, Cell]) -> Cell:
    whole = [cells[name] for name in average.of if cells[name].whole]
    values = [cell.value for cell in whole if cell.value is not None]
    if len(values) < len(average.of):
        return Cell(note=f"{len(values)} of {len(average.of)}")
    return Cell(mean(values), in_order(set("".join(cell.marks for cell in whole))))


def _difference(row: Row, against: Row) -> Row:
    cells: dict[str, Cell] = {}
    for name, cell in row.cells.items():
        theirs = against.cells[name]
        if cell.value is None or theirs.value is None or not cell.whole:
            cells[name] = Cell()
        else:
            cells[name] = Cell(cell.value - theirs.value, in_order(set(cell.marks + theirs.marks)))
    return Row(f"{row.name} - {against.name}", "difference", "", cells)


def _looks_different(one: Cell, other: Cell) -> bool:
    if one.value is None or other.value is None:
        return one.value is not other.value
    return rounded(one.value) != rounded(other.value)
