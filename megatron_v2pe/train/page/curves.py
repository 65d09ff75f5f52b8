"""The curves of a run's page: which values stand together in a figure, and in what form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megatron_v2pe.base.pages.blocks import FigureBlock, Table, text_line
from megatron_v2pe.base.pages.charts import Chart, Series, shown, smoothed
from megatron_v2pe.train.page.run_files import Points, RunFiles

MOST_LINES = 8
_ROWS = 10
_EVALUATION_FIGURES = (
    "evaluation/failed",
    "evaluation/failed_questions",
    "evaluation/seconds",
    "evaluation/memory_gib",
)
_RANK_SECONDS, _SLOWEST = "health/rank_seconds/", "health/slowest_rank"
_ELSEWHERE = ("health/skipped", "health/loss_spike", "health/diverged", "health/skipped_steps", _SLOWEST)
_OWN = ("loss/", "validation/", "evaluation/", "health/", "lr/")


def loss_charts(run: RunFiles) -> list[Chart]:
    """Return the loss, and that of each data set where there are several."""
    loss = run.points("loss")
    marks = tuple((float(step), "went on") for step in run.resumptions)
    log = is_wide([loss])
    charts = [Chart("Loss", _smooth(loss, "loss"), y_label="loss", marks=marks, log=log)]
    sets = {name.removeprefix("loss/"): run.points(name) for name in run.names("loss/")}
    if len(sets) > 1:
        kept = dict(sorted(sets.items(), key=lambda one: -len(one[1]))[:MOST_LINES])
        series = tuple(
            Series(name, smoothed(points), number) for number, (name, points) in enumerate(kept.items()) if points
        )
        charts.append(Chart("Loss by data set, smoothed", series, y_label="loss", log=is_wide(kept.values())))
    return _drawn(charts)


def validation_charts(run: RunFiles) -> list[Chart]:
    """Return the validation loss beside the training loss, and by data set."""
    whole = run.points("validation/loss")
    if not whole:
        return []
    train = smoothed(run.points("loss"))
    sets = {name.removeprefix("validation/loss/"): run.points(name) for name in run.names("validation/loss/")}
    beside = (Series("training, smoothed", train, 0), Series("validation", whole, 1, dots=True))
    log = is_wide([train, whole])
    charts = [Chart("Validation loss beside the training loss", beside, y_label="loss", log=log)]
    if len(sets) > 1:
        charts.append(Chart("Validation loss by data set", several(sets, dots=True), y_label="loss"))
    return _drawn(charts)


def evaluation_charts(run: RunFiles) -> list[Chart]:
    """Return the scores of evaluations while training."""
    scores = {
        name.removeprefix("evaluation/"): run.points(name)
        for name in run.names("evaluation/")
        if name not in _EVALUATION_FIGURES
    }
    return _drawn([Chart("Scores", several(scores, dots=True), y_label="score", from_zero=True)]) if scores else []


def gradient_charts(run: RunFiles) -> list[Chart]:
    """Return the norm of the gradients with its limit, and figures of health by their kind."""
    norms = run.points("grad_norm")
    limit = run.setting("optimizer", "clip_grad") or 0.0
    limits = ((float(limit), f"clipped above {limit:g}"),) if limit else ()
    log = is_wide([norms])
    charts = [Chart("Gradient norm before clipping", _smooth(norms, "norm"), y_label="norm", limits=limits, log=log)]
    groups: dict[str, dict[str, Points]] = {}
    for name in run.names("health/"):
        if name not in _ELSEWHERE and not name.startswith(_RANK_SECONDS):
            kind, _, part = name.removeprefix("health/").partition("/")
            groups.setdefault(kind, {})[part or kind] = run.points(name)
    for kind, parts in groups.items():
        title = kind.replace("_", " ").capitalize() + (" by part, smoothed" if len(parts) > 1 else "")
        is_share = kind.endswith("_share")
        log = is_wide(parts.values()) and not is_share
        soft = {name: smoothed(points) for name, points in parts.items()}
        charts.append(Chart(title, several(parts if is_share else soft), log=log, from_zero=is_share))
    return _drawn(charts)


def rate_charts(run: RunFiles) -> list[Chart]:
    """Return the learning rates."""
    rates = {"learning rate": run.points("lr")}
    rates |= {name.removeprefix("lr/"): run.points(name) for name in run.names("lr/")}
    return _drawn([Chart("Learning rate", several(rates), y_label="rate", from_zero=True)])


def speed_charts(run: RunFiles) -> list[Chart]:
    """Return speed, share of the peak, time and its part that is spent on waiting for data."""
    tokens = run.points("tokens_per_second", warm=True)
    charts = [Chart("Tokens per second", _smooth(tokens, "tokens/s"), y_label="tokens/s", from_zero=True)]
    mfu = tuple((step, 100 * value) for step, value in run.points("mfu", warm=True))
    charts.append(Chart("Share of the device's peak (MFU)", _smooth(mfu, "MFU"), y_label="percent", from_zero=True))
    times = {
        "whole step": run.points("seconds", warm=True),
        "wait for data": run.points("data_wait_seconds", warm=True),
    }
    charts.append(Chart("Time of a step", several(times), y_label="seconds", from_zero=True))
    ranks = {name.removeprefix(_RANK_SECONDS): run.points(name) for name in run.names(_RANK_SECONDS)}
    title = "Time of the ranks, until gradients are exchanged"
    charts.append(Chart(title, several(ranks, dots=True), y_label="seconds", from_zero=True))
    slowest = {"rank": run.points(_SLOWEST)}
    charts.append(Chart("Slowest rank", several(slowest, dots=True), y_label="number of the rank", from_zero=True))
    return _drawn(charts)


def memory_charts(run: RunFiles) -> list[Chart]:
    """Return memory of device and host."""
    host = run.points("host_memory_gib")
    memory = {"device, peak": run.points("memory_gib"), "host": host if any(value for _, value in host) else ()}
    return _drawn([Chart("Memory of the rank that needs most", several(memory), y_label="GiB", from_zero=True)])


def other_charts(run: RunFiles) -> list[Chart]:
    """Return values with a slash in their names that nothing here knows, by what stands before the slash."""
    groups: dict[str, dict[str, Points]] = {}
    for name in run.names(""):
        if "/" in name and not name.startswith(_OWN):
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = run.points(name)
    return _drawn([Chart(group, several(parts, dots=True)) for group, parts in groups.items()])


def with_numbers(charts: Sequence[Chart]) -> list[FigureBlock]:
    """Return charts as blocks, each with some of its numbers in a table."""
    return [FigureBlock(chart, _table(chart)) for chart in charts]


def several(lines: Mapping[str, Points], dots: bool = False) -> tuple[Series, ...]:
    """Return lines by name, the first `MOST_LINES` that have a point."""
    there = [(name, points) for name, points in lines.items() if points]
    return tuple(Series(name, points, number, dots=dots) for number, (name, points) in enumerate(there[:MOST_LINES]))


def is_wide(lines: Sequence[Points] | Iterator[Points] | object) -> bool:
    """Return whether values span so much that only powers of ten show them all."""
    values = [value for points in lines for _, value in points]  # type: ignore[attr-defined]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20


def _smooth(points: Points, name: str) -> tuple[Series, ...]:
    """Return a smoothed line over the raw values, or these alone where they are few."""
    soft = smoothed(points)
    if soft == points:
        return (Series(name, points, 0, dots=len(points) < 30),)
    return Series(name, points, 0, faint=True), Series(f"{name}, smoothed", soft, 0)


def _drawn(charts: Sequence[Chart]) -> list[Chart]:
    return [chart for chart in charts if not chart.is_empty]


def _table(chart: Chart) -> Table:
    """Return about ten rows of a chart's lines, the first and the last among them."""
    lines = [(one.name, dict(one.points)) for one in chart.named]
    steps = sorted({step for _, points in lines for step in points})
    count = min(_ROWS, len(steps))
    chosen = sorted({steps[round(number * (len(steps) - 1) / max(count - 1, 1))] for number in range(count)})
    rows = []
    for step in chosen:
        values = [shown(points[step]) if step in points else "" for _, points in lines]
        rows.append(text_line(f"{step:,.0f}", *values))
    return Table((chart.x_label, *(name for name, _ in lines)), tuple(rows), left=0)
