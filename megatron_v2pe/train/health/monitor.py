"""What a run says of every step once the host knows its outcome: norms by part, clipping, spikes, steps skipped.

The figures of the device ride in the one vector that all ranks add up and read (`train.step.finish_step`); what is
judged here is judged of that, alike on every rank, and costs the device nothing. Only where something is wrong do the
ranks exchange which samples the step was made of.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.health import attention_logits, part_norms
from megatron_v2pe.train.health.loss_spikes import SpikeRule
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.health.skipped_steps import (
    SKIPPED_STEPS,
    SkippedSteps,
    error_of,
    reason,
    weights_not_finite,
)
from megatron_v2pe.train.health.step_samples import PackSamples, gathered, in_words
from megatron_v2pe.train.metrics_file import SKIPPED, MetricsFile
from megatron_v2pe.train.step import StepResult

LOSS_SPIKES = "loss_spikes.jsonl"
"""File beside the metrics: a row for each step whose loss was a spike, with its samples."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _State:
    """What a run that goes on has to know."""

    skipped: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    spiking: bool = False
    clipped: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class JudgedStep:
    """A step whose outcome the host knows."""

    number: int
    """Its number, from 1."""
    end: StepResult
    packs: Sequence[PackSamples]
    """Samples of this rank's packs."""
    reports: Sequence[Tensor]
    """What each of the packs gave, on the device; empty on a stage before the last."""


class HealthMonitor(AfterStep):
    """Judges every step; keeps what it has seen in a checkpoint."""

    name = "health"

    def __init__(self, settings: HealthConfig, clip_grad: float, folder: Path | None = None, start: int = 0) -> None:
        """Begin with nothing seen.

        Args:
            settings: of the run.
            clip_grad: norm above which gradients are clipped; 0: never.
            folder: where files beside the metrics go; None where nothing is kept.
            start: steps done.
        """
        self._clip_grad, self._folder, self._start = clip_grad, folder, start
        self._skipped = SkippedSteps(settings)
        self._spikes = SpikeRule(settings.spike_factor, settings.window)
        self._clipped: deque[bool] = deque(maxlen=settings.window)
        self._files: dict[str, MetricsFile] = {}

    def judge(self, step: JudgedStep, model: nn.Module) -> dict[str, float]:
        """Return what is logged of a step; every rank calls this.

        Args:
            step: the step, before or after its update.
            model: this rank's stage, unwrapped.

        Raises:
            TrainingError: loss or gradients are not finite, and weights are not either, or a bound is exceeded.
        """
        values = {"health/skipped_steps": float(len(self._skipped.numbers)), **_of_device(step.end.figures)}
        if not step.end.is_finite:
            self._skip(step, model)
            return values | {"health/skipped_steps": float(len(self._skipped.numbers)), SKIPPED: 1.0}
        if self._clip_grad > 0:
            self._clipped.append(step.end.grad_norm > self._clip_grad)
            values["health/clipped_share"] = sum(self._clipped) / len(self._clipped)
        spike = self._spikes.judge(step.end.loss)
        if spike is not None:
            self._tell_of_spike(step, *spike)
        return values | {"health/loss_spike": float(spike is not None)}

    def _skip(self, step: JudgedStep, model: nn.Module) -> None:
        why = reason(step.end)
        counted = self._skipped.skip(step.number)
        packs = gathered(step.packs, step.reports)
        weights = weights_not_finite(model)
        self._write(
            SKIPPED_STEPS, {"iteration": step.number, "why": why, "weights_not_finite": weights, "packs": packs}
        )
        beyond = self._skipped.beyond()
        if dist.get_rank() == 0:
            wrong = [pack for pack in packs if pack["loss_share"] is None] or packs
            _log.warning(
                "step %d is skipped: %s; weights and optimizer stay as they were (%s). Samples: %s%s",
                *(step.number, why, counted, in_words(wrong), self._where(SKIPPED_STEPS)),
            )
        if weights or beyond:
            raise error_of(step.number, why, weights, beyond, self._skipped.numbers)

    def _tell_of_spike(self, step: JudgedStep, limit: float, begins: bool) -> None:
        packs = gathered(step.packs, step.reports)
        row = {"iteration": step.number, "loss": step.end.loss, "limit": limit, "begins": begins, "packs": packs}
        self._write(LOSS_SPIKES, row)
        if begins and dist.get_rank() == 0:
            largest = sorted(packs, key=lambda pack: pack["loss_share"] or 0.0, reverse=True)
            _log.warning(
                "step %d: the loss jumps to %.4f, more than %.4f is a spike. Samples, the largest share first: %s%s",
                *(step.number, step.end.loss, limit, in_words(largest), self._where(LOSS_SPIKES)),
            )

    def _where(self, name: str) -> str:
        return "" if self._folder is None else f"; all are named in {self._folder / name}"

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a file of rank 0; a full disk does not end a run."""
        if self._folder is None or dist.get_rank():
            return
        try:
            if name not in self._files:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._files[name] = MetricsFile(self._folder / name, self._start)
            self._files[name].write({**row, "time": time.time()})
        except OSError as error:
            _log.error("%s has no row of step %d, training goes on: %s", name, row["iteration"], error)

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return False: all is done in `judge`."""
        return False

    def run(self, iteration: int) -> Mapping[str, float]:
        """Do nothing: all is done in `judge`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the steps skipped, and the window of losses and clipped steps."""
        return {"skipped": list(self._skipped.numbers), **self._spikes.state(), "clipped": list(self._clipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an earlier process.

        Raises:
            CheckpointError: it is damaged.
        """
        known = typed(_State, state, "after_steps: health: state", CheckpointError)
        self._skipped.numbers = list(known.skipped)
        self._spikes.restore(known.losses, known.spiking)
        self._clipped.clear()
        self._clipped.extend(known.clipped)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _of_device(figures: Sequence[float]) -> dict[str, float]:
    """Return norms of parts, and in some steps the largest attention logits, as `train/loop.py` puts them together."""
    norms, logits = figures[: len(part_norms.NAMES)], figures[len(part_norms.NAMES) :]
    values = part_norms.named("health/grad_norm", norms) if norms else {}
    return values | (attention_logits.named(logits) if logits else {})
