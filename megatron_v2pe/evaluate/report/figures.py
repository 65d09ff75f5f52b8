"""Pictures: heat maps of length by depth, scores over length, scores by stride and length. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_v2pe.evaluate.report.needle_grids import DEPTH_NAMES, NeedleGrid
from megatron_v2pe.evaluate.report.series import StrideGrid, length_order

_COLOURS = colormaps["cividis"].with_extremes(bad="#e6e6e6")
_EMPTY = "grey: no samples"
_MARKERS = "osD^vPX*"
_DPI = 120


def draw_heat_maps(panels: Sequence[Sequence[tuple[str, NeedleGrid | None]]], title: str, path: Path) -> None:
    """Draw scores by length (along) and depth of the needle (down), one panel each.

    Args:
        panels: [rows, columns] of caption and scores; None: nothing was asked.
        title: over all.
        path: PNG file to write.
    """
    columns = max(map(len, panels))
    figure = Figure(figsize=(4.6 * columns + 0.8, 2.5 * len(panels) + 0.7), layout="constrained")
    axes = figure.subplots(len(panels), columns, squeeze=False)
    for row, line in enumerate(panels):
        for column in range(columns):
            axis = axes[row, column]
            caption, grid = line[column] if column < len(line) else ("", None)
            if grid is None:
                axis.axis("off")
                if caption:
                    axis.text(0.5, 0.5, f"{caption}\nnot asked", ha="center", va="center", color="#777777")
                continue
            shown = np.array([[np.nan if cell is None else cell for cell in line] for line in grid.values]).T
            _draw_cells(axis, shown, "%.0f", 7)
            axis.set_title(caption, fontsize=9)
            axis.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=7)
            axis.set_yticks(range(len(DEPTH_NAMES)), DEPTH_NAMES, fontsize=7)
            axis.set_xlabel("context, tokens", fontsize=7)
            axis.set_ylabel("depth of the needle", fontsize=7)
    figure.suptitle(f"{title} ({_EMPTY})", fontsize=11)
    _save(figure, path)


def draw_lines(lines: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw scores over length, a line per run.

    Args:
        lines: percent by length by name of the run.
        title: of the picture.
        path: PNG file to write.
    """
    lengths = sorted({length for line in lines.values() for length in line}, key=length_order)
    place = {length: number for number, length in enumerate(lengths)}
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axis = figure.subplots()
    for number, (name, line) in enumerate(lines.items()):
        there = [length for length in lengths if length in line]
        marker = _MARKERS[number % len(_MARKERS)]
        axis.plot([place[length] for length in there], [line[length] for length in there], marker=marker, label=name)
    axis.set_xticks(range(len(lengths)), lengths)
    axis.set_xlabel("context, tokens")
    axis.set_ylabel("score, percent")
    axis.set_ylim(0, 103)
    axis.set_title(title, fontsize=11)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def draw_strides(grid: StrideGrid, path: Path) -> None:
    """Draw scores by stride (down) and length (along)."""
    shown = np.array([[np.nan if cell is None else cell for cell in line] for line in grid.values])
    size = (1.8 + 0.75 * max(len(grid.lengths), 5), 1.6 + 0.45 * len(grid.strides))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    _draw_cells(axis, shown, "%.1f", 8)
    axis.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=8)
    axis.set_yticks(range(len(grid.strides)), grid.strides, fontsize=8)
    axis.set_xlabel("context, tokens", fontsize=8)
    axis.set_ylabel("stride", fontsize=8)
    marks = f" [marks: {grid.marks}]" if grid.marks else ""
    figure.suptitle(f"{grid.suite} by stride and length, percent{marks}", fontsize=10)
    _save(figure, path)


def _draw_cells(axis: Axes, values: np.ndarray, form: str, size: float) -> None:
    """Colour cells from 0 to 100 percent and write their numbers in."""
    axis.imshow(np.ma.masked_invalid(values), cmap=_COLOURS, vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 55 else "black"
            axis.text(column, row, form % value, ha="center", va="center", fontsize=size, color=colour)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
