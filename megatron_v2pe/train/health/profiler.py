"""Traces of steps by PyTorch's profiler: of the steps that `health.profile_steps` names, or of the next one on request.

A request is a file `profile_request` in the folder of the logs; rank 0 looks for it once a step, removes it, and all
ranks learn of it with the other numbers of a step (`train.step.finish_step`). A trace is a file for Chrome's viewer or
Perfetto, `profile/steps-FIRST-LAST-rank-RANK.json.gz` beside the logs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.train.health.settings import HealthConfig

REQUEST = "profile_request"
"""File in the folder of the logs that asks for a trace of the next step."""
FOLDER = "profile"
_log = get_logger(__name__)


class StepProfiler:
    """Traces some steps of this rank, if it is one of those that are to be traced."""

    def __init__(self, settings: HealthConfig, folder: Path | None, rank: int) -> None:
        """Take note of the steps.

        Args:
            settings: of the run.
            folder: of the logs; None: nothing is traced.
            rank: of this process.
        """
        self._steps, self._folder, self._rank = settings.profiled(), folder, rank
        self._is_chosen = folder is not None and rank in settings.profile_ranks
        self._running: tuple[int, int, Any] | None = None
        """First and last step of the trace that is being made, and the profiler."""

    def is_requested(self) -> bool:
        """Return whether a file asks for a trace, on rank 0; it is removed."""
        if self._rank or self._folder is None:
            return False
        try:
            (self._folder / REQUEST).unlink()
        except OSError:
            return False
        return True

    def request(self, step: int) -> None:
        """Have one step traced, a number from 1; every rank calls this alike."""
        self._steps = step, step

    def begin(self, step: int) -> None:
        """Trace from here on, if the step is the first of those to be traced, or a run goes on within them."""
        if not self._is_chosen or self._running is not None or self._steps is None:
            return
        first, last = self._steps
        if first <= step <= last:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            tracer = profile(activities=[ProfilerActivity.CPU, *gpu])
            tracer.start()
            self._running = step, last, tracer

    def end(self, step: int) -> None:
        """Write the trace, if the step is its last."""
        if self._running is not None and step >= self._running[1]:
            self._write(step)

    def close(self, step: int) -> None:
        """Write what has been traced, if a run ends within the steps to be traced; `step` is the last one done."""
        if self._running is not None:
            self._write(step)

    def _write(self, last: int) -> None:
        """End the trace and write it; a full disk does not end a run."""
        assert self._running is not None and self._folder is not None
        first, _, tracer = self._running
        self._running = self._steps = None
        tracer.stop()
        path = self._folder / FOLDER / f"steps-{first}-{last}-rank-{self._rank}.json.gz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tracer.export_chrome_trace(str(path))
        except OSError as error:
            _log.error("%s: the trace is not written, training goes on: %s", path, error)
            return
        _log.info("trace of steps %d to %d: %s", first, last, path)
