"""Writes a report: report.md, report.html, CSV files and pictures, into one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.base.pages.blocks import ReportPage, ReportPicture, Section
from megatron_v2pe.base.pages.html import to_html
from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.families.mm_niah.questions import TASKS
from megatron_v2pe.evaluate.report import csv_files, figures, sections
from megatron_v2pe.evaluate.report.audit import check_averages, oddities
from megatron_v2pe.evaluate.report.columns import LAYOUTS
from megatron_v2pe.evaluate.report.markdown import to_markdown
from megatron_v2pe.evaluate.report.needle_grids import NeedleGrid, mean_of
from megatron_v2pe.evaluate.report.own import own_answers, own_section
from megatron_v2pe.evaluate.report.published import PUBLISHED
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import Scores
from megatron_v2pe.evaluate.report.series import (
    SPLITS,
    Point,
    long_grid,
    needle_set,
    points,
    stride_grids,
    task_grids,
)
from megatron_v2pe.evaluate.report.tables import Row, in_order, marks_of, published_rows, run_rows
from megatron_v2pe.evaluate.scorers import Mode

_KINDS = ("image", "text")


@dataclass(frozen=True)
class Report:
    """What a report is made of."""

    runs: Sequence[EvaluationRun]
    scores: Scores
    mode: Mode
    """Mode of its scores; where the other gives other numbers, tables have a second line."""
    against: str
    """Published row that differences are to."""

    def write(self, out: Path) -> list[Path]:
        """Write all files into a folder; return them, report.md first.

        Files of the same names are replaced, others left alone.
        """
        out.mkdir(parents=True, exist_ok=True)
        document = ReportPage("Evaluation report", [sections.runs_section(self.runs, self.mode)])
        if (mine := own_section(self.runs, self.scores)) is not None:
            document.sections.append(mine)
            csv_files.write_own(out / "own_questions.csv", own_answers(self.runs, self.scores))
        tables = {layout.name: self._rows(layout.name) for layout in LAYOUTS}
        for layout in LAYOUTS:
            document.sections.append(sections.table_section(layout, tables[layout.name]))
            csv_files.write_table(out / f"{layout.name}.csv", layout, tables[layout.name])
        written = [out / f"{layout.name}.csv" for layout in LAYOUTS]
        written += [out / "own_questions.csv"] if mine is not None else []
        if self.runs:
            document.sections.append(sections.completeness_section(self.scores, self.mode))
            csv_files.write_scores(out / "scores.csv", self.scores)
            written.append(out / "scores.csv")
            for section, files in (self._heat_maps(out), self._series(out), self._strides(out)):
                document.sections += [section] if section is not None else []
                written += files
        document.sections.append(sections.audit_section(check_averages(), oddities()))
        csv_files.write_audit(out / "audit.csv", check_averages())
        document.sections.append(sections.columns_section())
        if self.runs:
            names = {name for run in self.runs for name in run.benchmarks}
            titles = {name: create(name).title for name in names}
            document.sections.append(sections.scores_section(self.scores, titles))
        texts = {"report.md": to_markdown(document), "report.html": to_html(document)}
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
        return [*(out / name for name in texts), *written, out / "audit.csv"]

    def _rows(self, table: str) -> list[Row]:
        layout = next(layout for layout in LAYOUTS if layout.name == table)
        rows = published_rows(layout)
        against = next((row for row in rows if row.name == self.against), None)
        for run in (run for run in self.runs if run.benchmarks):
            rows += run_rows(layout, run, self.scores, self.mode, against)
        return rows

    def _heat_maps(self, out: Path) -> tuple[Section | None, list[Path]]:
        pictures: list[ReportPicture] = []
        cells: list[tuple[str, str, str, str, NeedleGrid]] = []
        for number, run in enumerate(self.runs):
            mine = self.scores[self.mode][run.name]
            for split in SPLITS:
                grids = task_grids(mine, split, self.mode)
                if not grids:
                    continue
                means = _means(grids)
                marks = marks_of(mine[needle_set(split, task)] for task in grids)
                cells += [
                    (run.name, f"MM-NIAH {split}", task, marks, grid) for task, grid in {**grids, **means}.items()
                ]
                path = out / f"heat_map_{number}_{split}.png"
                title = f"{run.name}: MM-NIAH {split}, percent, mode {self.mode}{_told(marks)}"
                figures.draw_heat_maps(_panels({**grids, **means}), title, path)
                pictures.append(ReportPicture(path, title))
            if (grid := long_grid(mine, self.mode)) is not None:
                marks = marks_of(mine[name] for name in BENCHMARKS.groups()["mmniah_long"] if name in mine)
                cells.append((run.name, "MM-NIAH long", "retrieval-image", marks, grid))
                path = out / f"heat_map_{number}_long.png"
                title = f"{run.name}: MM-NIAH long, retrieval-image{_told(marks)}"
                figures.draw_heat_maps([[("retrieval-image", grid)]], title, path)
                pictures.append(ReportPicture(path, title))
        if not cells:
            return None, []
        csv_files.write_heat_maps(out / "heat_maps.csv", cells)
        files = [out / "heat_maps.csv", *(picture.path for picture in pictures)]
        return sections.heat_map_section(pictures, {mark for *_, marks, _ in cells for mark in marks}), files

    def _points(self) -> list[Point]:
        return points(self.runs, self.scores, self.mode)

    def _series(self, out: Path) -> tuple[Section | None, list[Path]]:
        found = self._points()
        if not found:
            return None, []
        pictures: list[ReportPicture] = []
        for suite in dict.fromkeys(point.suite for point in found):
            lines: dict[str, dict[str, float]] = {}
            shown = [point for point in found if point.suite == suite]
            for run in dict.fromkeys(point.run for point in shown):
                there = [point for point in shown if point.run == run]
                label = f"{_label(there[0])}{_told(in_order({mark for point in there for mark in point.marks}))}"
                lines[label] = {point.length: point.value for point in there}
            path = out / f"by_length_{_file_name(suite)}.png"
            figures.draw_lines(lines, f"{suite}, mode {self.mode}", path)
            pictures.append(ReportPicture(path, f"{suite} by length"))
        csv_files.write_points(out / "by_length.csv", found)
        files = [out / "by_length.csv", *(picture.path for picture in pictures)]
        return sections.series_section(found, pictures), files

    def _strides(self, out: Path) -> tuple[Section | None, list[Path]]:
        grids = stride_grids(self.runs, self._points())
        if not grids:
            return None, []
        pictures: list[ReportPicture] = []
        for number, grid in enumerate(grids):
            path = out / f"by_stride_{number}_{_file_name(grid.suite)}.png"
            figures.draw_strides(grid, path)
            pictures.append(
                ReportPicture(path, f"{grid.suite} by stride and length, checkpoint {grid.checkpoint[:12]}")
            )
        csv_files.write_strides(out / "by_stride.csv", grids)
        files = [out / "by_stride.csv", *(picture.path for picture in pictures)]
        return sections.stride_section(grids, pictures, self.runs), files


def check_against(model: str) -> None:
    """Check that there is a published row to compare with.

    Raises:
        ConfigError: there is none; suggests near ones.
    """
    models = list(dict.fromkeys(row.model for rows in PUBLISHED.values() for row in rows))
    if model not in models:
        hint = did_you_mean(model, models, otherwise=f"there are {', '.join(models)}")
        raise ConfigError(f"--against {model}: no such published row{hint}")


def _means(grids: Mapping[str, NeedleGrid]) -> dict[str, NeedleGrid]:
    """Return the means over image tasks, text tasks and all."""
    kinds = {kind: [grid for task, grid in grids.items() if task.endswith(kind)] for kind in _KINDS}
    means = {f"mean of {kind} tasks ({len(mine)} of 3)": mean_of(mine) for kind, mine in kinds.items() if mine}
    return {**means, f"mean of all ({len(grids)} of {len(TASKS)})": mean_of(list(grids.values()))}


def _panels(grids: Mapping[str, NeedleGrid]) -> list[list[tuple[str, NeedleGrid | None]]]:
    """Return a row of panels for each kind of needle, and one of the means."""
    tasks = list(dict.fromkeys(task for task, _ in TASKS))
    rows: list[list[tuple[str, NeedleGrid | None]]] = [
        [(f"{task}-{kind}", grids.get(f"{task}-{kind}")) for task in tasks] for kind in _KINDS
    ]
    return [*rows, [(name, grid) for name, grid in grids.items() if name.startswith("mean")]]


def _told(marks: str) -> str:
    """Return marks as the end of a title."""
    return f" [marks: {marks}]" if marks else ""


def _label(point: Point) -> str:
    return point.run if point.stride == "-" else f"{point.run} (stride {point.stride})"


def _file_name(suite: str) -> str:
    return suite.lower().replace(" ", "_").replace("-", "_")
