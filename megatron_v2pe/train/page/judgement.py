"""What a page says first: whether a run is healthy, in words, and what speaks for and against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_v2pe.base.pages.blocks import Banner
from megatron_v2pe.train.page.run_files import RunFiles

_SHARE = 0.1
"""Rows at either end over which a loss is averaged, at most `_MOST`."""
_MOST = 20
_FEWEST = 10
"""Rows without which a loss that rises says nothing about a run's health."""
_RISEN = 1.05
"""A validation loss so many times its least has risen."""
_WAITING = 0.1
"""Share of a run's time spent on waiting for data that is worth a word."""
_OFTEN_CLIPPED = 0.5


@dataclass
class _Findings:
    bad: list[str]
    careful: list[str]
    good: list[str]


def judge(run: RunFiles) -> Banner:
    """Return the judgement of a run."""
    found = _Findings([], [], [])
    losses = [float(row["loss"]) for row in run.rows if isinstance(row.get("loss"), int | float)]
    if not losses:
        return Banner("careful", "Nothing to judge yet: no step is logged.")
    begin, end = ends_of(losses)
    steps = run.rows[-1]["iteration"]
    fall = f"the loss fell from {begin:.3g} to {end:.3g} in {steps:,} steps"
    if not math.isfinite(losses[-1]):
        found.bad.append(f"The last loss is {losses[-1]}.")
    elif len(losses) > 1 and end >= begin:
        few = len(losses) < _FEWEST
        (found.bad if end > 1.2 * begin and not few else found.careful).append(
            f"The loss did not fall: {begin:.3g} at the beginning, {end:.3g} at the end"
            + ("; the logged steps are too few to tell more." if few else ".")
        )
    _steps(run, found)
    _validation(run, found)
    _data(run, found)
    total = run.record.train_steps
    if total and steps < total:
        found.good.append(f"{steps:,} of {total:,} steps are done.")
    if found.bad:
        headline = f"Not healthy: {_lower(found.bad[0])}"
        return Banner("bad", headline, (*found.bad[1:], *found.careful, *found.good))
    if found.careful:
        told = [f"{fall[:1].upper()}{fall[1:]}."] if end < begin else []
        return Banner(
            "careful", f"Look at this run: {_lower(found.careful[0])}", (*found.careful[1:], *told, *found.good)
        )
    return Banner("good", f"Healthy: {fall}.", tuple(found.good))


def ends_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the means over the first and the last tenth of values, at most 20 of each."""
    count = max(1, min(int(len(values) * _SHARE), _MOST))
    return sum(values[:count]) / count, sum(values[-count:]) / count


def clipped_share(run: RunFiles) -> float | None:
    """Return the share of logged steps whose gradients were clipped; None where none can be."""
    limit = run.setting("optimizer", "clip_grad")
    norms = run.points("grad_norm")
    if not limit or not norms:
        return None
    return sum(value > limit for _, value in norms) / len(norms)


def _steps(run: RunFiles, found: _Findings) -> None:
    skipped = sum(value for _, value in run.points("health/skipped"))
    if skipped:
        found.careful.append(f"{skipped:.0f} steps were skipped, because loss or gradients were no numbers.")
    elif run.names("health/"):
        found.good.append("No step was skipped.")
    spikes = sum(value for _, value in run.points("health/loss_spike"))
    if spikes:
        found.careful.append(f"The loss spiked {spikes:.0f} times.")
    if any(value for _, value in run.points("health/diverged")):
        found.bad.append("Ranks have diverged: what must be equal on all of them was not.")
    share = clipped_share(run)
    limit = run.setting("optimizer", "clip_grad")
    if share is not None and limit is not None:
        sentence = f"Gradients were clipped, at a norm of {limit:g}, in {share:.0%} of the steps."
        late = [value > limit for _, value in run.points("grad_norm")[-max(len(run.rows) // 4, 1) :]]
        is_often = sum(late) / len(late) > _OFTEN_CLIPPED
        (found.careful if is_often else found.good).append(
            sentence if not is_often else f"{sentence[:-1]}, still in most of the last quarter."
        )


def _validation(run: RunFiles, found: _Findings) -> None:
    points = run.points("validation/loss")
    if len(points) < 2:
        return
    best_step, best = min(points, key=lambda point: point[1])
    last = points[-1][1]
    if last > best * _RISEN:
        found.careful.append(
            f"The validation loss has risen from {best:.4g} at step {best_step:,.0f} to {last:.4g}: "
            "the model learns its training data by heart."
        )
    else:
        found.good.append(f"The validation loss is {last:.4g}, its least {best:.4g} at step {best_step:,.0f}.")


def _data(run: RunFiles, found: _Findings) -> None:
    lost = sum(run.record.skipped.values())
    if lost:
        found.careful.append(f"{lost:,} samples were left out; their causes are listed under Data.")
    elif run.record.drawn:
        found.good.append("No sample was left out.")
    waits = dict(run.points("data_wait_seconds", warm=True))
    spent = dict(run.points("seconds", warm=True))
    whole = sum(spent[step] for step in waits if step in spent)
    if whole and sum(waits.values()) / whole > _WAITING:
        found.careful.append(f"{sum(waits.values()) / whole:.0%} of the time was spent on waiting for data.")
    if run.resumptions:
        steps = ", ".join(f"{step:,}" for step in run.resumptions[:8])
        found.good.append(f"It was interrupted and went on after step {steps}.")
    found.careful.extend(run.problems)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
