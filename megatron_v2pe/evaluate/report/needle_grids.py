"""Where needles were found: scores by length of context and depth, as MM-NIAH bins them.

Context bins begin at 1k, 2k, 4k, 8k, 12k, 16k, 24k, 32k, 40k, 48k and 64k tokens, depths fall into fifths. In
reference mode a cell is the published one: 64k has no end, samples below 1k are left out, and a depth of 0.6 falls one
fifth short, by rounding. In corrected mode there are bins below 1k and from 128k to 1M. A cell without samples has no
number; the published evaluation takes it for 0 when it averages, which `row_score` does in reference mode only.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_v2pe.evaluate.families.mm_niah.summary import BINS, DEPTHS, LONG_BINS
from megatron_v2pe.evaluate.scorers.base import Mode, mean

DEPTH_NAMES = tuple(f"{fifth / DEPTHS:g}-{(fifth + 1) / DEPTHS:g}" for fifth in range(DEPTHS))


@dataclass(frozen=True)
class Needle:
    """A judged sample of a needle task: its score, its length and its depth."""

    context_length: float
    """In tokens, as the file states it."""
    depth: float
    """0 to 1; of several needles the mean."""
    score: float
    """0 to 1."""


@dataclass(frozen=True)
class NeedleGrid:
    """The scores of a needle task by length and depth."""

    lengths: tuple[str, ...]
    """Names of the rows."""
    values: tuple[tuple[float | None, ...], ...]
    """Percent, [lengths, depths]; None where there are no samples."""
    counts: tuple[tuple[int, ...], ...]
    """Samples, [lengths, depths]."""

    def row_score(self, row: int, mode: Mode) -> float | None:
        """Return the mean over the depths of a length in percent; None without samples."""
        there = [value for value in self.values[row] if value is not None]
        if not there:
            return None
        return sum(there) / DEPTHS if mode == "reference" else mean(there)


def grid_of(needles: Iterable[Needle], mode: Mode) -> NeedleGrid:
    """Return the scores of a task by context bin and depth; bins beyond the published eleven only where not empty."""
    edges = BINS if mode == "reference" else LONG_BINS
    rows: list[list[Needle]] = [[] for _ in range(len(edges) + 1)]
    for needle in needles:
        rows[bisect.bisect_right(edges, needle.context_length)].append(needle)
    if mode == "reference":
        rows[0] = []
    kept = [row for row, members in enumerate(rows) if members or 1 <= row <= len(BINS)]
    names = ["<1k", *(_name(edge) for edge in edges)]
    return grid_of_rows({names[row]: rows[row] for row in kept}, mode)


def grid_of_rows(rows: dict[str, Sequence[Needle]], mode: Mode) -> NeedleGrid:
    """Return the scores of samples that are sorted by length already, by depth."""
    values: list[tuple[float | None, ...]] = []
    counts: list[tuple[int, ...]] = []
    for members in rows.values():
        cells: list[list[float]] = [[] for _ in range(DEPTHS)]
        for needle in members:
            cells[_fifth(needle.depth, mode)].append(needle.score)
        values.append(tuple(100.0 * mean(cell) if cell else None for cell in cells))
        counts.append(tuple(len(cell) for cell in cells))
    return NeedleGrid(tuple(rows), tuple(values), tuple(counts))


def mean_of(grids: Sequence[NeedleGrid]) -> NeedleGrid:
    """Return the mean of tasks cell by cell, each task weighing the same, over those that have samples there."""
    names = [name for name in ("<1k", *map(_name, LONG_BINS)) if any(name in grid.lengths for grid in grids)]
    values: list[tuple[float | None, ...]] = []
    counts: list[tuple[int, ...]] = []
    for name in names:
        rows = [(grid.values[row], grid.counts[row]) for grid in grids for row in _places(grid, name)]
        cells = [[value[depth] for value, _ in rows] for depth in range(DEPTHS)]
        known = [[value for value in cell if value is not None] for cell in cells]
        values.append(tuple(mean(cell) if cell else None for cell in known))
        counts.append(tuple(sum(count[depth] for _, count in rows) for depth in range(DEPTHS)))
    return NeedleGrid(tuple(names), tuple(values), tuple(counts))


def mean_over_depths(needles: Sequence[Needle]) -> float:
    """Return the score of a set of one length in percent: the mean over the depths that have samples, as corrected."""
    score = grid_of_rows({"": needles}, "corrected").row_score(0, "corrected")
    assert score is not None
    return score


def _places(grid: NeedleGrid, name: str) -> list[int]:
    return [grid.lengths.index(name)] if name in grid.lengths else []


def _fifth(depth: float, mode: Mode) -> int:
    if mode == "reference":
        return int((0.99 if depth == 1.0 else depth) / 0.2)
    return min(int(depth * DEPTHS), DEPTHS - 1)


def _name(edge: int) -> str:
    return f"{edge // 1000}k" if edge < 1_000_000 else "1M"
