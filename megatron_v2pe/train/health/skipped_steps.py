"""Steps whose loss or gradients are not finite: they update nothing, are counted, and end the run beyond a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megatron_v2pe.errors import TrainingError
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.step import StepResult

SKIPPED_STEPS = "skipped_steps.jsonl"
"""File beside the metrics: a row for each step that was skipped, with its samples."""


class SkippedSteps:
    """The steps that a run has skipped, and how many it may skip."""

    def __init__(self, settings: HealthConfig) -> None:
        """Begin with none."""
        self._settings = settings
        self.numbers: list[int] = []
        """Their numbers, from 1, in order; over all processes of the run."""

    def in_a_row(self) -> int:
        """Return how many steps up to the last one skipped follow one another."""
        count = 0
        for number in reversed(self.numbers):
            if number != self.numbers[-1] - count:
                break
            count += 1
        return count

    def skip(self, step: int) -> str:
        """Count a step; return in words how many there are of those allowed."""
        self.numbers.append(step)
        row, total = self._settings.max_skipped_in_a_row, self._settings.max_skipped_steps
        return f"{self.in_a_row()} in a row of {row} allowed, {len(self.numbers)} in all of {total}"

    def beyond(self) -> str | None:
        """Return the setting whose bound is exceeded, with its value; None while there is none."""
        if self.in_a_row() > self._settings.max_skipped_in_a_row:
            return f"health.max_skipped_in_a_row allows {self._settings.max_skipped_in_a_row}"
        if len(self.numbers) > self._settings.max_skipped_steps:
            return f"health.max_skipped_steps allows {self._settings.max_skipped_steps}"
        return None


def reason(end: StepResult) -> str:
    """Return what of a step is not finite, in words."""
    if not math.isfinite(end.loss):
        return f"the loss is {end.loss}"
    return f"the norm of the gradients is {end.grad_norm}"


def error_of(step: int, why: str, weights: Sequence[str], beyond: str | None, skipped: Sequence[int]) -> TrainingError:
    """Return the error that ends a run at a step which is not finite.

    Args:
        step: its number, from 1.
        why: what of it is not finite, see `reason`.
        weights: names of weights that are not finite.
        beyond: the bound that is exceeded, in words, see `SkippedSteps.beyond`.
        skipped: all steps skipped by then.
    """
    mend = "the last checkpoint was written before that. Resume with a lower optimizer.lr"
    if step == 1:
        mend = "nothing was saved. Try a lower optimizer.lr"
    if weights:
        named = ", ".join(weights[:3]) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "")
        beyond = f"weights are not finite: {named}"
        if step == 1:
            mend = "nothing was saved. The weights it starts with are no numbers: tools/generate.py names them"
    earlier = [str(one) for one in skipped if one != step]
    steps = f"; skipped before: {', '.join(earlier[-10:])}" if earlier else ""
    return TrainingError(
        f"step {step}: {why}; {beyond}{steps}; {mend}, or look at the samples of this step, which {SKIPPED_STEPS} "
        "beside the metrics names"
    )


def weights_not_finite(model: nn.Module) -> list[str]:
    """Return the names of the weights that are not finite on any rank; every rank calls this and waits for the device.

    Args:
        model: this rank's stage, unwrapped, its parameters complete.
    """
    named = list(model.named_parameters())
    finite = torch.stack([torch.isfinite(parameter.detach()).all() for _, parameter in named]).tolist()
    mine = [name for (name, _), holds in zip(named, finite, strict=True) if not holds]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return list(dict.fromkeys(name for names in everyone for name in names))
