"""Several runs side by side: settings that differ, curves over one axis, final numbers, the way to a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from megatron_v2pe.base.pages.blocks import ReportPage, Section, Table, text_line
from megatron_v2pe.base.pages.charts import Chart, Series, shown, smoothed
from megatron_v2pe.base.pages.html import to_html
from megatron_v2pe.base.pages.raster import draw_png
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.page.build import default_settings, flat
from megatron_v2pe.train.page.curves import is_wide, with_numbers
from megatron_v2pe.train.page.judgement import clipped_share, ends_of
from megatron_v2pe.train.page.run_files import Points, RunFiles

Axis = Literal["step", "tokens", "seconds"]
_CURVES = {
    "loss": "Loss, smoothed",
    "validation/loss": "Validation loss",
    "grad_norm": "Gradient norm, smoothed",
    "lr": "Learning rate",
    "tokens_per_second": "Tokens per second, smoothed",
    "memory_gib": "Peak memory, GiB",
}
_SMOOTH = ("loss", "grad_norm", "tokens_per_second")
_PLACES = ("checkpoint.save", "logging.dir")


@dataclass(frozen=True)
class RunComparison:
    """Runs to be compared, under names that tell them apart."""

    runs: Sequence[tuple[str, RunFiles]]
    axis: Axis = "step"
    """What curves are drawn over: steps, or tokens or seconds in steps since the beginning."""
    loss: float | None = None
    """The loss whose first time is stated; None: the largest of the last losses, which all have reached."""

    def page(self) -> ReportPage:
        """Return the page of the comparison."""
        title = f"Comparison of {len(self.runs)} runs"
        numbers, settings = self.numbers(), self.settings()
        page = ReportPage(title, subtitle=", ".join(name for name, _ in self.runs), has_contents=True)
        page.sections = [
            Section("Final numbers", [numbers]),
            Section("Curves", [*with_numbers(self.charts())]),
            Section("Settings that differ", [settings if settings.lines else "No setting differs."]),
        ]
        return page

    def charts(self) -> list[Chart]:
        """Return a figure for each value that a run has, one line a run."""
        names = list(_CURVES) + sorted(
            {
                name
                for _, run in self.runs
                for prefix in ("validation/loss/", "evaluation/")
                for name in run.names(prefix)
                if not name.startswith("evaluation/failed") and name not in ("evaluation/seconds",)
            }
        )
        charts = []
        for name in names:
            series = []
            for number, (run_name, run) in enumerate(self.runs):
                points = self._placed(run, run.points(name, warm=name == "tokens_per_second"))
                dots = "/" in name
                series.append(Series(run_name, smoothed(points) if name in _SMOOTH else points, number, dots=dots))
            chart = Chart(_CURVES.get(name, name), tuple(series), x_label=self._axis_name)
            if not chart.is_empty:
                log = name in ("loss", "grad_norm") and is_wide([one.points for one in series])
                charts.append(Chart(chart.title, tuple(series), x_label=self._axis_name, log=log))
        return charts

    def numbers(self) -> Table:
        """Return the final numbers, one row a run."""
        level = self._level()
        header = ["run", "steps", "loss", "validation", "least validation", "scores", "tokens", "tokens/s", "MFU"]
        header += ["GiB", "clipped", "left out", f"step of loss {level:.3g}" if level else "-", "time to it"]
        lines = []
        for name, run in self.runs:
            losses = [value for _, value in run.points("loss")]
            validation = [value for _, value in run.points("validation/loss")]
            scores = [run.points(one)[-1][1] for one in run.names("evaluation/") if self._is_score(run, one)]
            seconds = sum(value for _, value in run.points("seconds", warm=True))
            tokens = sum(value for _, value in run.points("tokens", warm=True))
            mfu, memory = (run.points(one, warm=one == "mfu") for one in ("mfu", "memory_gib"))
            step, spent = self._reached(run, level)
            share = clipped_share(run)
            lines.append(
                text_line(
                    name,
                    f"{run.rows[-1]['iteration']:,}" if run.rows else "0",
                    shown(ends_of(losses)[1]) if losses else "",
                    shown(validation[-1]) if validation else "",
                    shown(min(validation)) if validation else "",
                    f"{sum(scores) / len(scores):.1f}" if scores else "",
                    shown(sum(value for _, value in run.points("tokens"))),
                    shown(tokens / seconds) if seconds else "",
                    f"{sum(value for _, value in mfu) / len(mfu):.1%}" if mfu else "",
                    f"{max(value for _, value in memory):.2f}" if memory else "",
                    "" if share is None else f"{share:.0%}",
                    f"{sum(run.record.skipped.values()):,}",
                    step,
                    spent,
                )
            )
        return Table(tuple(header), tuple(lines))

    def settings(self) -> Table:
        """Return the settings that are not the same in all runs whose record has them, one column a run."""
        usual = default_settings()
        of_runs = [flat(run.record.settings) for _, run in self.runs]
        lines = []
        for name in dict.fromkeys(name for settings in of_runs for name in settings):
            # A setting that a run of an earlier version did not have is as it is by default.
            values = [settings.get(name, usual.get(name, "unset")) if settings else None for settings in of_runs]
            if len(set(values) - {None}) > 1 and name not in _PLACES:
                lines.append(text_line(name, *("not recorded" if value is None else value for value in values)))
        return Table(("setting", *(name for name, _ in self.runs)), tuple(lines), left=len(self.runs) + 1)

    def text(self) -> str:
        """Return final numbers and differing settings as lines of text."""
        parts = []
        for table in (self.numbers(), self.settings()):
            rows = [table.header, *(tuple(entry.text for entry in line.entries) for line in table.lines)]
            kept = [number for number in range(len(table.header)) if any(row[number] for row in rows[1:])]
            widths = [max(len(row[number]) for row in rows) for number in kept]
            for row in rows if len(rows) > 1 else []:
                cells = [
                    row[number].ljust(width) if number < table.left else row[number].rjust(width)
                    for number, width in zip(kept, widths, strict=True)
                ]
                parts.append("  ".join(cells).rstrip())
            parts.append("")
        return "\n".join(parts).rstrip() + "\n"

    def write(self, out: Path) -> list[Path]:
        """Write `compare.html` and `compare.png` into a folder, which is made if it is not there; return their paths.

        Raises:
            OSError: a file cannot be written.
        """
        out.mkdir(parents=True, exist_ok=True)
        page = self.page()
        written = [out / "compare.html"]
        write_text(written[0], to_html(page))
        if charts := self.charts():
            draw_png(page.title, page.subtitle, charts[:9], out / "compare.png")
            written.append(out / "compare.png")
        return written

    @property
    def _axis_name(self) -> str:
        return {"step": "step", "tokens": "tokens", "seconds": "seconds in steps"}[self.axis]

    def _placed(self, run: RunFiles, points: Points) -> Points:
        """Return points over the chosen axis."""
        if self.axis == "step":
            return points
        steps, values = zip(*(run.points(self.axis) or ((0.0, 0.0),)), strict=True)
        every = run.rows[-1]["iteration"] / len(run.rows) if run.rows else 1.0
        so_far = dict(zip(steps, accumulate(value * every for value in values), strict=True))
        return tuple((so_far[step], value) for step, value in points if step in so_far)

    def _level(self) -> float:
        if self.loss is not None:
            return self.loss
        last = [ends_of([value for _, value in points])[1] for _, run in self.runs if (points := run.points("loss"))]
        return max(last, default=0.0)

    @staticmethod
    def _reached(run: RunFiles, level: float) -> tuple[str, str]:
        """Return the first step at which the smoothed loss is at most a level, and the time in steps until then."""
        reached = next((step for step, value in smoothed(run.points("loss")) if value <= level * (1 + 1e-9)), None)
        if reached is None:
            return "never", ""
        spent = sum(value for step, value in run.points("seconds") if step <= reached)
        return f"{reached:,.0f}", f"{spent:,.0f} s"

    @staticmethod
    def _is_score(run: RunFiles, name: str) -> bool:
        return bool(run.points(name)) and name.rpartition("/")[2] not in (
            "failed",
            "failed_questions",
            "seconds",
            "memory_gib",
        )


def names_of(runs: Sequence[tuple[str | None, RunFiles]]) -> list[tuple[str, RunFiles]]:
    """Return runs under the names given, else those of their folders.

    Raises:
        ConfigError: two have the same name.
    """
    named = [(name or run.name, run) for name, run in runs]
    twice = {name for name, _ in named if [other for other, _ in named].count(name) > 1}
    if twice:
        raise ConfigError(f"two runs are called {sorted(twice)[0]}: give them names, NAME=FOLDER")
    return named
