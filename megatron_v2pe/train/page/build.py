"""Puts the page of a run together and writes it: `run.html`, which needs nothing beside it, and `run.png`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.base.pages.blocks import (
    Cards,
    Fact,
    Facts,
    PageCard,
    Passage,
    ReportBlock,
    ReportPage,
    Section,
    Table,
    text_line,
)
from megatron_v2pe.base.pages.charts import Bars, Chart, shown
from megatron_v2pe.base.pages.html import to_html
from megatron_v2pe.base.pages.raster import draw_png
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.page import curves, data_sections
from megatron_v2pe.train.page.judgement import ends_of, judge
from megatron_v2pe.train.page.record_file import PAGE, PICTURE
from megatron_v2pe.train.page.run_files import RunFiles, open_run

_PANELS = 9
_LONGEST_VALUE = 300


def write_page(path: Path, out: Path | None = None) -> list[Path]:
    """Write page and picture of a run; return their paths.

    Args:
        path: the folder of the run or of its logs.
        out: folder to write into, made if it is not there; that of the logs by default.

    Raises:
        ConfigError: there are no metrics.
        DataError: they are damaged.
        OSError: a file cannot be written.
    """
    run = open_run(path)
    out = out or run.logs
    out.mkdir(parents=True, exist_ok=True)
    page = page_of(run)
    write_text(out / PAGE, to_html(page))
    written = [out / PAGE]
    if panels := panels_of(run):
        assert page.banner is not None
        draw_png(page.title, page.banner.headline, panels, out / PICTURE)
        written.append(out / PICTURE)
    return written


def page_of(run: RunFiles) -> ReportPage:
    """Return the page of a run."""
    page = ReportPage(f"Run {run.name}", banner=judge(run), subtitle=_subtitle(run), has_contents=True)
    summary = Section("In short", [Facts(tuple(_facts(run)))])
    named = [
        ("Loss", curves.loss_charts(run)),
        ("Validation", curves.validation_charts(run)),
        ("Evaluation", curves.evaluation_charts(run)),
        ("Gradients and learning rate", [*curves.gradient_charts(run), *curves.rate_charts(run)]),
        ("Speed and memory", [*curves.speed_charts(run), *curves.memory_charts(run)]),
        ("Other values", curves.other_charts(run)),
    ]
    page.sections = [summary]
    page.sections += [Section(heading, [*curves.with_numbers(charts)]) for heading, charts in named if charts]
    for section in page.sections:
        if section.heading == "Evaluation":
            section.blocks += _answers(run)
    page.sections.append(data_sections.data_section(run))
    if (packs := data_sections.packs_section(run)) is not None:
        page.sections.append(packs)
    page.sections += list(_settings(run))
    if run.record.sessions:
        page.sections.append(_sessions(run))
    return page


def panels_of(run: RunFiles) -> list[Chart | Bars]:
    """Return the figures of the picture, the most telling first."""
    more: list[Chart | Bars | None] = [
        *curves.loss_charts(run),
        *curves.validation_charts(run)[:1],
        *curves.evaluation_charts(run),
        *curves.gradient_charts(run)[:1],
        *curves.rate_charts(run),
        *curves.speed_charts(run)[:1],
        *curves.memory_charts(run),
        data_sections.mix_bars(run),
        data_sections.length_bars(run),
        data_sections.tile_bars(run),
    ]
    return [figure for figure in more if figure is not None][:_PANELS]


def _subtitle(run: RunFiles) -> str:
    parts = [run.record.model]
    if run.record.sessions:
        last = run.record.sessions[-1]
        parts += [str(last.get("where", "")), str(last.get("layout", ""))]
    elif run.rows and run.rows[0].get("device"):
        parts.append(str(run.rows[0]["device"]))
    return " · ".join(part for part in parts if part)


def _facts(run: RunFiles) -> Iterator[Fact]:
    if not run.rows:
        return
    steps, total = run.rows[-1]["iteration"], run.record.train_steps
    yield Fact("Steps", f"{steps:,}", f"of {total:,}" if total else "")
    losses = [value for _, value in run.points("loss")]
    if losses:
        begin, end = ends_of(losses)
        yield Fact("Loss", shown(end), f"from {shown(begin)}")
    if validation := run.points("validation/loss"):
        step, best = min(validation, key=lambda point: point[1])
        yield Fact("Validation loss", shown(validation[-1][1]), f"least {shown(best)} at step {step:,.0f}")
    for name in [one for chart in curves.evaluation_charts(run) for one in chart.series][:4]:
        yield Fact(name.name, shown(name.points[-1][1]), f"best {shown(max(value for _, value in name.points))}")
    if drawn := run.record.drawn:
        counts = drawn.get("sets", {}).values()
        tokens, samples = (sum(row.get(key, 0) for row in counts) for key in ("tokens", "samples"))
        yield Fact("Tokens", shown(tokens), f"{samples:,} samples")
    seconds = [value for _, value in run.points("seconds", warm=True)]
    if seconds:
        whole = sum(value for _, value in run.points("tokens", warm=True))
        yield Fact("Tokens per second", shown(whole / sum(seconds)), "without steps that warm up")
        spent = sum(value for _, value in run.points("seconds"))
        yield Fact("Time in steps", _duration(spent), f"{sum(seconds) / len(seconds):.3g} s a step")
    if mfu := run.points("mfu", warm=True):
        yield Fact("MFU", f"{sum(value for _, value in mfu) / len(mfu):.1%}")
    if memory := run.points("memory_gib"):
        yield Fact("Peak memory", f"{max(value for _, value in memory):.3g} GiB", "of the rank that needs most")
    yield Fact("Left out", f"{sum(run.record.skipped.values()):,}", "samples")


def _answers(run: RunFiles) -> list[ReportBlock]:
    """Return questions and answers of the last evaluation."""
    blocks: list[ReportBlock] = []
    for benchmark in run.asked:
        score = "no score" if benchmark.score is None else f"score {benchmark.score:.1f}"
        blocks.append(f"{benchmark.name} after step {run.evaluated:,}: {score}, {benchmark.questions:,} questions.")
        cards = [
            PageCard(f"Question {number}", (Passage(((prompt, ""),)), Passage(((answer, "learned"),))))
            for number, (prompt, answer) in enumerate(benchmark.answers, 1)
        ]
        blocks += [Cards(tuple(cards))] if cards else []
    return blocks


def _settings(run: RunFiles) -> Iterator[Section]:
    """Yield the settings that are not the defaults, and all of them, folded."""
    settings = flat(run.record.settings)
    if not settings:
        return
    usual = default_settings()
    changed = [(name, value) for name, value in settings.items() if usual.get(name, "") != value]
    rows = tuple(text_line(name, value, usual.get(name, "none")) for name, value in changed)
    yield Section("Settings", [Table(("setting", "value", "default"), rows, left=3)])
    every = tuple(text_line(name, value) for name, value in settings.items())
    yield Section("All settings", [Table(("setting", "value"), every, left=2)], folded=True)


def default_settings() -> dict[str, str]:
    """Return the default of every setting, as `flat` gives settings."""
    return flat(to_dict(ExperimentConfig()))


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings by their full names, as words: `train.precision` -> `bf16`."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": text for inner, text in flat(value).items()}
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found[name] = "unset" if value is None else text[:_LONGEST_VALUE]
    return found


def _sessions(run: RunFiles) -> Section:
    """Return where the run ran, one row a process, and with which versions."""
    rows = []
    for session in run.record.sessions:
        begun, ended = session.get("time"), session.get("ended")
        rows.append(
            text_line(
                f"{session.get('from', 0):,} to {session.get('to', session.get('from', 0)):,}",
                _moment(begun),
                _moment(ended),
                str(session.get("host", "")),
                str(session.get("where", "")),
                str(session.get("layout", "")),
            )
        )
    header = ("steps", "began", "last written", "host", "device", "layout")
    section = Section("Where it ran", [Table(header, tuple(rows), left=6)])
    names = {name: None for session in run.record.sessions for name in session.get("versions", {})}
    if names:
        versions = []
        for name in names:
            found = dict.fromkeys(str(session.get("versions", {}).get(name, "")) for session in run.record.sessions)
            versions.append(text_line(name, ", then ".join(found)))
        section.blocks.append(Table(("package", "version"), tuple(versions), left=2))
    if command := run.record.sessions[-1].get("command"):
        section.blocks.append(Passage(((str(command), ""),)))
    return section


def _moment(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"
