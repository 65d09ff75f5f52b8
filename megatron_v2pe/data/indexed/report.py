"""The report of a build: per data set what is in it and what had to be left out; as JSON, as text, as a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.data.bad_samples import cause_of
from megatron_v2pe.data.indexed.layout import IndexedSet
from megatron_v2pe.foreign.media_fields import named

JSON_REPORT, TEXT_REPORT, PLOT = "report.json", "report.txt", "lengths.png"
_SHOWN_CAUSES = 5
_MOST_BARS = 12
"""Data sets with a colour of their own in the plot; the rest share one."""


def write_report(
    folder: Path,
    sets: Sequence[IndexedSet],
    samples: np.ndarray,
    files: np.ndarray,
    skipped: Sequence[Sequence[tuple[int, str]]],
    unread: Sequence[dict[str, int]],
) -> list[str]:
    """Write all three reports into `folder`; return their names.

    Args:
        folder: of the set.
        sets: its data sets.
        samples: `SAMPLE` records of all of them.
        files: `FILE` records.
        skipped: of each data set line and reason of the samples left out.
        unread: of each data set the fields of its lines that nobody reads, with how many lines have each.
    """
    edges = _edges(int(samples["tokens"].max(initial=1)))
    entries = [_entry(entry, samples, edges, lost) for entry, lost in zip(sets, skipped, strict=True)]
    for entry, fields in zip(entries, unread, strict=True):
        entry.update({"unread_fields": fields} if fields else {})
    readable = files[files["size"] >= 0]
    content = {
        "samples": len(samples),
        "tokens": _total(samples, "tokens"),
        "tiles": _total(samples, "tiles"),
        "supervised": _total(samples, "supervised"),
        "files": len(files),
        "unreadable_files": len(files) - len(readable),
        "file_bytes": int(readable["size"].sum()),
        "histogram_edges": edges.tolist(),
        "datasets": entries,
    }
    (folder / JSON_REPORT).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / TEXT_REPORT).write_text(as_text(content), encoding="utf-8")
    _plot(folder / PLOT, entries, edges)
    return [JSON_REPORT, TEXT_REPORT, PLOT]


def as_text(content: dict[str, Any]) -> str:
    """Return the report as a table and the causes of what was left out."""
    rows = [["data set", "lines", "samples", "left out", "repeat", "tokens", "tiles", "median", "longest"]]
    for entry in content["datasets"]:
        counts = [f"{entry[name]:,}" for name in ("lines", "samples", "skipped")]
        lengths = [f"{entry[name]:,}" for name in ("tokens", "tiles", "median", "longest")]
        rows.append([entry["name"], *counts, f"{entry['repeat_time']:g}", *lengths])
    lines, left_out = (sum(entry[name] for entry in content["datasets"]) for name in ("lines", "skipped"))
    longest = max(entry["longest"] for entry in content["datasets"])
    counts = [f"{number:,}" for number in (lines, content["samples"], left_out)]
    rows.append(["all", *counts, "", f"{content['tokens']:,}", f"{content['tiles']:,}", "", f"{longest:,}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = ""
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        text += "  ".join([first.ljust(widths[0]), *cells]) + "\n"
    text += f"{content['files']:,} files, {content['file_bytes'] / 2**20:,.1f} MiB"
    text += f"; {content['unreadable_files']:,} cannot be read\n" if content["unreadable_files"] else "\n"
    for entry in content["datasets"]:
        for cause, count in entry["causes"][:_SHOWN_CAUSES]:
            first = next(line for line, reason in entry["skipped_lines"] if cause_of(reason) == cause)
            text += f"left out of {entry['name']}: {count:,} x {cause} (first: line {first})\n"
        if unread := entry.get("unread_fields"):
            text += f"fields of {entry['name']} that are not read, with how many lines have each: {named(unread)}\n"
    return text


def _entry(
    entry: IndexedSet, samples: np.ndarray, edges: np.ndarray, skipped: Sequence[tuple[int, str]]
) -> dict[str, Any]:
    mine = samples[entry.first : entry.first + entry.samples]
    causes = Counter(cause_of(reason) for _, reason in skipped)
    return {
        "name": entry.name,
        "annotation": entry.annotation,
        "lines": entry.lines,
        "samples": entry.samples,
        "skipped": len(skipped),
        "repeat_time": entry.repeat_time,
        "tokens": _total(mine, "tokens"),
        "tiles": _total(mine, "tiles"),
        "supervised": _total(mine, "supervised"),
        "median": int(np.median(mine["tokens"])) if len(mine) else 0,
        "longest": int(mine["tokens"].max(initial=0)),
        "histogram": np.histogram(mine["tokens"], edges)[0].tolist(),
        "causes": sorted(causes.items(), key=lambda item: (-item[1], item[0])),
        "skipped_lines": [[line, reason] for line, reason in skipped],
    }


def _total(samples: np.ndarray, field: str) -> int:
    return int(samples[field].sum(dtype=np.int64))


def _edges(longest: int) -> np.ndarray:
    """Powers of two in four parts each, from 16 up to the longest sample."""
    count = 4 * max(int(np.ceil(np.log2(max(longest + 1, 32) / 16))), 1)
    edges = np.unique(np.round(16 * 2 ** (np.arange(count + 1) / 4)).astype(np.int64))
    return np.concatenate([[0], edges])


def _plot(path: Path, entries: Sequence[dict[str, Any]], edges: np.ndarray) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed here alone
    from matplotlib.figure import Figure
    from matplotlib.style import context

    with context("default"):  # whatever the user's own settings are
        _draw(path, entries, edges, Figure, FigureCanvasAgg)


def _draw(path: Path, entries: Sequence[dict[str, Any]], edges: np.ndarray, figure_class: Any, canvas: Any) -> None:
    figure = figure_class(figsize=(9, 4.5))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.12, top=0.97)  # half the time of a layout engine
    canvas(figure)
    axes = figure.add_subplot()
    order = sorted(entries, key=lambda entry: -entry["samples"])
    shown, rest = order[:_MOST_BARS], order[_MOST_BARS:]
    heights = [(entry["name"], np.array(entry["histogram"])) for entry in shown]
    if rest:
        heights.append((f"{len(rest)} others", np.sum([entry["histogram"] for entry in rest], axis=0)))
    left = edges[:-1].clip(8)
    bottom = np.zeros(len(left))
    bars: list[Any] = []
    for number, (_, values) in enumerate(heights):
        bars.append(axes.bar(left, values, edges[1:] - left, bottom=bottom, align="edge", color=f"C{number % 10}"))
        bottom += values
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens of a sample")
    axes.set_ylabel("samples")
    legend = axes.legend(bars, [name for name, _ in heights], fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # names are names, also with dollar signs
    figure.savefig(path, dpi=110, metadata={"Software": None})
