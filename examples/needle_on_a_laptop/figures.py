"""The pictures of the result: accuracy by length, and depth by length."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from results import DEPTHS, Line, depth_map
from settings import ORDINARY, V2PE, Row, Settings
from start_model import TRAINED_LENGTH

SHOWN = (
    *(ORDINARY, Row("default", scaling="dynamic"), Row("default", scaling="linear")),
    *(Row("v2pe"), V2PE, Row("v2pe", Fraction(1, 256))),
)
"""Rows with a heat map."""


def by_length(path: Path, lines: Sequence[Line], known: dict[str, float], settings: Settings) -> None:
    """Draw the share of needles read by the length of the prompt: means, and from the worst to the best seed."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), sharey=True)
    for axis, haystack in zip(axes, ("pages", "words"), strict=True):
        for number, line in enumerate(line for line in lines if line.haystack == haystack):
            ours = line.trained == "V2PE"
            points = [(n, cell.mean) for n, cell in zip(settings.lengths, line.cells, strict=True)]
            style = {"linewidth": 2.2, "marker": "o"} if ours else {"linewidth": 1.4, "marker": "s", "linestyle": "--"}
            label = f"{line.trained}, read at {line.read_at}"
            colour = f"C{number % 10}"
            axis.plot(*zip(*points, strict=True), label=label, color=colour, markersize=4, **style)
            worst, best = ([pick(cell.shares) for cell in line.cells] for pick in (min, max))
            axis.fill_between(settings.lengths, worst, best, color=colour, alpha=0.12, linewidth=0)
        for value in known.values():
            axis.axhline(value, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks(settings.lengths, [str(length) for length in settings.lengths])
        axis.axvline(TRAINED_LENGTH, color="grey", linewidth=0.8)
        axis.set_xlabel("tokens of the prompt (trained at the vertical line)")
        axis.set_title(f"haystack of {haystack}")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    axes[0].set_ylabel("needles read")
    axes[0].set_ylim(0, 1.03)
    _save(figure, path)


def by_depth(path: Path, out: Path, settings: Settings) -> None:
    """Draw depth by length for the rows that matter most."""
    figure, axes = plt.subplots(2, len(SHOWN) // 2, figsize=(4 * len(SHOWN) // 2, 6.4), sharex=True, sharey=True)
    for axis, row in zip(axes.flat, SHOWN, strict=True):
        grid = depth_map(out, settings, row)
        axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for y, values in enumerate(grid):
            for x, value in enumerate(values):
                if value == value:
                    axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(settings.lengths)), [str(length) for length in settings.lengths])
        axis.set_yticks(range(DEPTHS), [f"{100 * n // DEPTHS}-{100 * (n + 1) // DEPTHS}%" for n in range(DEPTHS)])
        axis.set_title(f"{row.label}, read at {row.read_at}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("tokens of the prompt")
    for axis in axes[:, 0]:
        axis.set_ylabel("depth of the needle")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
