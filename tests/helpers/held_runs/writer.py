"""The log writer that stands still after a step: see this folder's `__init__.py`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from helpers.held_runs import VARIABLE, WRITER
from megatron_v2pe.train.metrics import LoggedStep
from megatron_v2pe.train.metrics_writer import MetricsWriter, WriterContext
from megatron_v2pe.train.writers import WRITERS


@WRITERS.register(WRITER)
class HeldWriter(MetricsWriter):
    """Waits in the middle of a run; signals reach the run as they would without it."""

    def __init__(self, place: WriterContext) -> None:
        """Read where to wait."""
        step, _, folder = os.environ[VARIABLE].partition(" ")
        self._step, self._folder, self._asked = int(step), Path(folder), False

    def write(self, step: LoggedStep) -> None:
        """Wait, if it is the step."""
        if step.iteration != self._step:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._listen(number)
        (self._folder / "held").touch()
        while not self._asked and not (self._folder / "go").exists():
            time.sleep(0.02)

    def _listen(self, number: int) -> None:
        usual = signal.getsignal(number)

        def noted(number: int, frame: object) -> None:
            self._asked = True
            if callable(usual):
                usual(number, frame)  # pyright: ignore[reportArgumentType]

        signal.signal(number, noted)
