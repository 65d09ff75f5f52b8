"""Figures of a page: lines over steps and bars by kind, laid out once and drawn as SVG (`svg.py`) or PNG (`raster.py`).

A layout is a list of shapes in a box of `WIDTH` by `HEIGHT` units. Colours are names: `ink`, `quiet`, `rule`, and `c0`
to `c7` for series; whoever draws says what they look like, on paper, on a light or on a dark screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 440.0, 250.0
COLOURS = 8
"""Colours of series; later ones are taken again."""
SMALL, TINY = 11.0, 9.5
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 8.0, 36.0
_POINTS = 400
"""Most points of a line that are drawn: of more, the least and the largest of each stretch."""

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Series:
    """A line: its name and its points."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: int
    """Number of its colour."""
    faint: bool = False
    """Drawn thin and pale, behind the others, and not named: raw values under a smoothed line."""
    dots: bool = False
    """With a dot at every point: values that were measured now and then."""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    series: tuple[Series, ...]
    x_label: str = "step"
    y_label: str = ""
    log: bool = False
    """Powers of ten along the upright axis; used where all values are above 0."""
    limits: tuple[tuple[float, str], ...] = ()
    """Levels to compare with: value and name."""
    marks: tuple[tuple[float, str], ...] = ()
    """Places along the axis: value and what happened there."""
    from_zero: bool = False
    """Let the upright axis begin at 0."""

    @property
    def named(self) -> tuple[Series, ...]:
        """Return the series that a legend names."""
        return tuple(one for one in self.series if not one.faint)

    @property
    def is_empty(self) -> bool:
        """Return whether there is not one point to draw."""
        return not any(_finite(one.points) for one in self.series)


@dataclass(frozen=True)
class Bars:
    """Bars side by side: some kinds, each with a value of every group."""

    title: str
    kinds: tuple[str, ...]
    groups: tuple[tuple[str, tuple[float, ...]], ...]
    """Name and values of each group, one value for each kind."""
    x_label: str = ""
    y_label: str = ""

    @property
    def is_empty(self) -> bool:
        """Return whether there is no bar to draw."""
        return not self.kinds or not any(value for _, values in self.groups for value in values)


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle: left, top, width, height."""

    place: tuple[float, float, float, float]
    colour: str


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    place: tuple[float, float]
    colour: str
    radius: float = 2.4


@dataclass(frozen=True)
class Words:
    """A line of text; `place` is where its baseline begins, has its middle, or ends."""

    place: tuple[float, float]
    text: str
    anchor: Anchor = "start"
    size: float = SMALL
    colour: str = "quiet"
    upright: bool = False
    """Written from below to above."""


Shape = Stroke | Box | Dot | Words


@dataclass(frozen=True)
class Frame:
    """How values become places along the two axes of a chart."""

    x: tuple[float, float]
    """Least and largest value along the axis."""
    y: tuple[float, float]
    """Least and largest value of the upright axis, as logarithms where it is one of powers."""
    log: bool

    def across(self, value: float) -> float:
        """Return where a value lies from the left."""
        low, high = self.x
        return _LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def down(self, value: float) -> float:
        """Return where a value lies from the top."""
        low, high = self.y
        value = math.log10(value) if self.log else value
        return HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1.0) * (HEIGHT - _TOP - _BOTTOM)


def colour_of(number: int) -> str:
    """Return the name of a series' colour."""
    return f"c{number % COLOURS}"


def frame_of(chart: Chart) -> Frame:
    """Return the axes that hold all that a chart shows; it is not empty."""
    points = [point for one in chart.series for point in _finite(one.points)]
    values = [y for _, y in points]
    log = chart.log and min(values) > 0
    shown = values + [value for value, _ in chart.limits if min(values) / 3 < value < max(values) * 3]
    low, high = min(shown), max(shown)
    if log:
        low, high = math.log10(low), math.log10(high)
    elif chart.from_zero:
        low = min(low, 0.0)
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 1e-3)
    bottom = low if chart.from_zero and low == 0 else low - margin
    across = [x for x, _ in points]
    return Frame((min(across), max(across)), (bottom, high + margin), log)


def layout_chart(chart: Chart) -> list[Shape]:
    """Return the shapes of a chart that is not empty."""
    frame = frame_of(chart)
    shapes: list[Shape] = list(_grid(frame, chart))
    for value, name in chart.marks:
        if frame.x[0] <= value <= frame.x[1]:
            place = frame.across(value)
            shapes.append(Stroke(((place, _TOP), (place, HEIGHT - _BOTTOM)), "quiet", 1.0, dashed=True))
            is_right = place > WIDTH * 0.7
            beside = place - 4 if is_right else place + 4
            shapes.append(Words((beside, _TOP + 9), name, "end" if is_right else "start", TINY))
    for value, name in chart.limits:
        height = frame.down(value) if value > 0 or not frame.log else -1.0
        if _TOP <= height <= HEIGHT - _BOTTOM:
            shapes.append(Stroke(((_LEFT, height), (WIDTH - _RIGHT, height)), "quiet", 1.0, dashed=True))
            shapes.append(Words((WIDTH - _RIGHT, height - 4), name, "end", TINY))
    for one in sorted(chart.series, key=lambda one: not one.faint):
        shapes += _line(frame, one)
    return shapes


def layout_bars(bars: Bars) -> list[Shape]:
    """Return the shapes of bars that are not empty."""
    most = max(value for _, values in bars.groups for value in values)
    frame = Frame((0, len(bars.kinds)), (0.0, most * 1.08), False)
    shapes: list[Shape] = list(_upright_axis(frame, bars.y_label))
    slot = (WIDTH - _LEFT - _RIGHT) / len(bars.kinds)
    width = min(slot * 0.84 / len(bars.groups), 46.0)
    letters = max(int(slot / 4.9), 6)
    every = max(math.ceil(min(max(len(kind) for kind in bars.kinds), letters) * 4.9 / slot), 1)
    for number, kind in enumerate(bars.kinds):
        middle = _LEFT + (number + 0.5) * slot
        first = middle - width * len(bars.groups) / 2
        for place, (_, values) in enumerate(bars.groups):
            top = frame.down(values[number])
            box = (first + place * width, top, max(width - 1, 0.5), HEIGHT - _BOTTOM - top)
            shapes.append(Box(box, colour_of(place)))
        if number % every == 0:
            shapes.append(Words((middle, HEIGHT - _BOTTOM + 13), _short(kind, letters), "middle", TINY))
    shapes.append(Stroke(((_LEFT, HEIGHT - _BOTTOM), (WIDTH - _RIGHT, HEIGHT - _BOTTOM)), "rule"))
    shapes.append(Words(((WIDTH + _LEFT) / 2, HEIGHT - 6), bars.x_label, "middle"))
    return shapes


def _grid(frame: Frame, chart: Chart) -> Iterator[Shape]:
    yield from _upright_axis(frame, chart.y_label)
    for value in _ticks(*frame.x, 6, whole=True):
        yield Words((frame.across(value), HEIGHT - _BOTTOM + 14), shown(value), "middle")
    yield Stroke(((_LEFT, HEIGHT - _BOTTOM), (WIDTH - _RIGHT, HEIGHT - _BOTTOM)), "rule")
    yield Words(((WIDTH + _LEFT) / 2, HEIGHT - 6), chart.x_label, "middle")


def _upright_axis(frame: Frame, label: str) -> Iterator[Shape]:
    for value in _powers(*frame.y) if frame.log else _ticks(*frame.y, 5):
        height = frame.down(value)
        yield Stroke(((_LEFT, height), (WIDTH - _RIGHT, height)), "rule", 0.7)
        yield Words((_LEFT - 5, height + 4), shown(value), "end")
    if label:
        yield Words((11, (HEIGHT - _BOTTOM + _TOP) / 2), label, "middle", upright=True)


def _line(frame: Frame, one: Series) -> Iterator[Shape]:
    """Yield a line in pieces: where a value is no number, or cannot be shown, it has a gap."""
    colour, piece = colour_of(one.colour), list[tuple[float, float]]()
    width = 0.9 if one.faint else 1.8
    found = thinned(one.points)
    for x, y in [*found, (math.nan, math.nan)]:
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not frame.log):
            piece.append((frame.across(x), frame.down(y)))
            continue
        if len(piece) > 1:
            yield Stroke(tuple(piece), colour, width, faint=one.faint)
        if piece and (one.dots or len(piece) == 1):
            yield from (Dot(place, colour) for place in piece)
        piece = []


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return at most `_POINTS` of the points, the least and the largest of each stretch, so that no peak is lost."""
    if len(points) <= _POINTS:
        return points
    stretch = math.ceil(2 * len(points) / _POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        least, largest = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
        kept += sorted({least, largest})
    return kept


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.04) -> tuple[tuple[float, float], ...]:
    """Return the running mean of points over `share` of them, half before and half behind; few stay as they are.

    At the beginning, where a loss falls fast, both halves are as short as the first; at the end the second ends.
    """
    half = int(len(points) * share / 2)
    if half < 1:
        return tuple(points)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found = []
    for number, (x, _) in enumerate(points):
        before = min(half, number)
        low, high = number - before, min(number + before + 1, len(points))
        found.append((x, (sums[high] - sums[low]) / (high - low)))
    return tuple(found)


def shown(value: float) -> str:
    """Return a number as an axis or a table shows it: four digits, thousands as `12k`, millions as `3.4M`."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if unit == "k" else limit
            return f"{value / divisor:.4g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size and size < 1e-3:
        digits, power = f"{value:.2e}".split("e-0") if size >= 1e-9 else f"{value:.2e}".split("e-")
        return f"{digits.rstrip('0').rstrip('.')}e-{power}"
    return f"{value:.4g}"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def _ticks(low: float, high: float, count: int, whole: bool = False) -> Iterator[float]:
    """Yield round numbers between two values, about `count` of them."""
    raw = (high - low) / count or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield number * step


def _powers(low: float, high: float) -> Iterator[float]:
    """Yield round numbers between two logarithms: powers of ten, with 2 and 5 between them where few fit."""
    factors = (1,) if high - low > 2.5 else (1, 2, 5)
    found = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in factors
        if low <= math.log10(factor) + power <= high
    ]
    every = math.ceil(len(found) / 7) or 1
    yield from found[::every] if len(found) > 1 else _ticks(10**low, 10**high, 4)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
