"""Figures as SVG that takes its colours from the page around it, so that one drawing serves light and dark screens."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from megatron_v2pe.base.pages.charts import (
    HEIGHT,
    WIDTH,
    Bars,
    Box,
    Chart,
    Dot,
    Shape,
    Stroke,
    colour_of,
    frame_of,
    layout_bars,
    layout_chart,
    thinned,
)


def to_svg(figure: Chart | Bars, number: int) -> str:
    """Return a figure that is not empty as an `<svg>` element.

    Args:
        figure: the figure.
        number: of the figure in its page, for names of elements.
    """
    shapes = layout_chart(figure) if isinstance(figure, Chart) else layout_bars(figure)
    parts = "".join(_element(shape) for shape in shapes)
    names = f'aria-labelledby="t{number} d{number}"'
    said = f'<title id="t{number}">{escape(figure.title)}</title><desc id="d{number}">{escape(in_words(figure))}</desc>'
    return f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" {names}>{said}{parts}</svg>'


def in_words(figure: Chart | Bars) -> str:
    """Return what a figure shows, for those who do not see it."""
    if isinstance(figure, Bars):
        names = ", ".join(name for name, _ in figure.groups)
        return f"Bars of {names} for {', '.join(figure.kinds[:12])}."
    told = []
    for one in figure.named:
        if one.points:
            (first, begin), (last, end) = one.points[0], one.points[-1]
            told.append(f"{one.name} goes from {begin:.4g} at {first:g} to {end:.4g} at {last:g}")
    return f"Lines over {figure.x_label}: {'; '.join(told[:12])}."


def points_of(chart: Chart) -> str:
    """Return the points of a chart as JSON, for the page's script that tells their values under the pointer."""
    frame = frame_of(chart)
    series: list[dict[str, Any]] = [
        {
            "name": one.name,
            "colour": colour_of(one.colour),
            "points": [[x, y, round(frame.across(x), 1)] for x, y in thinned(one.points) if y == y and abs(y) < 1e300],
        }
        for one in chart.named
    ]
    return json.dumps({"label": chart.x_label, "series": series}, separators=(",", ":"))


def _element(shape: Shape) -> str:
    if isinstance(shape, Stroke):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        kinds = [f"s-{shape.colour}", *(["faint"] if shape.faint else []), *(["dashed"] if shape.dashed else [])]
        return f'<polyline class="{" ".join(kinds)}" stroke-width="{shape.width:g}" points="{points}"/>'
    if isinstance(shape, Box):
        x, y, width, height = shape.place
        return f'<rect class="f-{shape.colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    if isinstance(shape, Dot):
        (x, y), radius = shape.place, shape.radius
        return f'<circle class="f-{shape.colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'
    x, y = shape.place
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if shape.upright else ""
    return (
        f'<text class="f-{shape.colour}" x="{x:.1f}" y="{y:.1f}" text-anchor="{shape.anchor}" '
        f'font-size="{shape.size:g}"{turned}>{escape(shape.text)}</text>'
    )
