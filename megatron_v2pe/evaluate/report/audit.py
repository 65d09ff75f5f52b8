"""What the published averages do not follow from, what cannot be checked, and what else in the tables disagrees.

Columns and averages are printed with one decimal: a column may be 0.05 off, so may their mean, and the printed average
0.05 more. What differs by more than 0.1 follows from no numbers that round to those printed. Exact decimals throughout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from megatron_v2pe.evaluate.report.columns import LAYOUTS, Average, TableLayout
from megatron_v2pe.evaluate.report.published import LEADERBOARD, PARAMETERS, PUBLISHED, PublishedRow, recomputed
from megatron_v2pe.evaluate.report.rounding import rounded

BOUND = Decimal("0.1")
"""Most a printed average may differ from the mean of printed columns: half a digit of each."""
_HALF = Decimal("0.055")
"""Half a printed digit, and half a digit of the leaderboard's means."""
_SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)B\b")
_SIZE_TOLERANCE = Decimal("0.15")
"""A model's name and its printed size may differ by this share; names round."""

Verdict = Literal[
    "follows", "within rounding", "does not follow", "cannot be recomputed", "printed though columns are missing"
]


@dataclass(frozen=True)
class Check:
    """A published average with the mean of its columns, to compare the two."""

    table: str
    model: str
    average: str
    printed: Decimal | None
    recomputed: Decimal | None
    """Not rounded; None where a column is a dash."""
    columns: int
    """How many of its columns have a number."""
    of: int
    missing: tuple[str, ...]
    verdict: Verdict

    @property
    def difference(self) -> Decimal | None:
        """Return printed minus recomputed."""
        return None if self.printed is None or self.recomputed is None else self.printed - self.recomputed


def check_averages() -> list[Check]:
    """Return every average of every published row, checked; in the order of the tables."""
    return [
        _check(layout, row, average)
        for layout in LAYOUTS
        for row in PUBLISHED[layout.name]
        for average in layout.averages
    ]


def _check(layout: TableLayout, row: PublishedRow, average: Average) -> Check:
    mean, printed = recomputed(layout, row)[average.name], row.printed[average.name]
    missing = tuple(name for name in average.of if row.printed[name] is None)
    return Check(
        layout.name,
        row.model,
        average.name,
        printed,
        mean,
        len(average.of) - len(missing),
        len(average.of),
        missing,
        _verdict(printed, mean),
    )


def _verdict(printed: Decimal | None, mean: Decimal | None) -> Verdict:
    if mean is None:
        return "cannot be recomputed" if printed is None else "printed though columns are missing"
    if printed is None:
        return "follows"  # all columns are there and none is printed: the tables have no such row
    if rounded(mean) == str(printed):
        return "follows"
    return "within rounding" if abs(printed - mean) <= BOUND else "does not follow"


def oddities() -> list[str]:
    """Return what else in the published tables disagrees with itself or with other public numbers, a sentence each."""
    return [*_averages_left_out(), *_sizes(), *_counted_sizes(), *_sizes_between_tables(), *_bold(), *_leaderboard()]


def _averages_left_out() -> Iterator[str]:
    for check in check_averages():
        if check.printed is None and check.recomputed is not None:
            yield f"{check.model}: {check.average} is not printed though all its columns are."


def _sizes() -> Iterator[str]:
    """Yield the models whose name says another size than the column."""
    for model, size in dict.fromkeys((row.model, row.size) for rows in PUBLISHED.values() for row in rows):
        named, printed = _SIZE.search(model), _SIZE.fullmatch(size)
        if named and printed and abs(Decimal(printed[1]) / Decimal(named[1]) - 1) > _SIZE_TOLERANCE:
            yield f"{model}: #Param is printed as {size}, its name says {named[0]}."


def _counted_sizes() -> Iterator[str]:
    for model, size in dict.fromkeys((row.model, row.size) for rows in PUBLISHED.values() for row in rows):
        if model in PARAMETERS:
            counted = rounded(Decimal(PARAMETERS[model]) / 10**9)
            if f"{counted}B" != size:
                yield f"{model}: #Param is printed as {size}, its architecture has {PARAMETERS[model]:,}: {counted}B."


def _sizes_between_tables() -> Iterator[str]:
    sizes: dict[str, set[str]] = {}
    for rows in PUBLISHED.values():
        for row in rows:
            sizes.setdefault(row.model, set()).add(row.size)
    for model, different in sizes.items():
        if len(different) > 1:
            yield f"{model}: #Param is {' in one table, '.join(sorted(different))} in the other."


def _bold() -> Iterator[str]:
    """Yield the columns where bold print marks another number than the highest; a row that is all bold marks itself."""
    for layout in LAYOUTS:
        rows = PUBLISHED[layout.name]
        marking = [row for row in rows if not all(name in row.bold for name, value in row.printed.items() if value)]
        for name in layout.names:
            there = [(value, row) for row in rows if (value := row.printed[name]) is not None]
            if not there:
                continue
            best, holder = max(there, key=lambda pair: pair[0])
            for row in marking:
                value = row.printed[name]
                if name in row.bold and value is not None and value < best:
                    yield f"{name}: bold is {value} ({row.model}), the highest is {best} ({holder.model})."


def _leaderboard() -> Iterator[str]:
    """Yield the MM-NIAH cells that differ from MM-NIAH's own leaderboard by more than rounding."""
    for row in PUBLISHED["long_context"]:
        for name, known in zip(("MM-NIAH/Image", "MM-NIAH/Text"), LEADERBOARD.get(row.model, ()), strict=False):
            printed = row.printed[name]
            if known is not None and printed is not None and abs(printed - known) > _HALF:
                yield (
                    f"{row.model}: {name} is printed as {printed}; MM-NIAH's leaderboard files (test split, mean over "
                    f"three tasks and eleven context bins) give {known}."
                )
