"""Signals that stop a run: every rank finishes the same step, saves and ends.

SIGTERM, SIGUSR1 and SIGHUP come from schedulers and closed terminals, SIGINT from Ctrl-C. A second Ctrl-C ends the
process at once. What ranks ask for travels with the other numbers of a step (`train.step.finish_step`).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType

import torch.distributed as dist

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.command import end_now

_SAME_SECONDS = 0.5
"""A terminal and a launcher may both pass on one Ctrl-C."""


class StopRequest:
    """Notes signals on this rank, and what all ranks have agreed on."""

    def __init__(self) -> None:
        """Install the handlers in this process."""
        self._asked = exit_status.FINISHED
        self._asked_at = 0.0
        self._agreed = exit_status.FINISHED
        self._stopping = False
        wanted = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
        numbers = [
            one for one in wanted if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN
        ]  # nohup
        self._previous = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._asked == exit_status.INTERRUPTED and time.monotonic() - self._asked_at > _SAME_SECONDS:
                end_now(exit_status.INTERRUPTED)
            if self._asked != exit_status.INTERRUPTED and dist.get_rank() == 0:
                with suppress(OSError):  # not print: it may be what was interrupted
                    os.write(2, b"\nstopping: this step is finished and saved; Ctrl-C again ends at once\n")
            self._asked, self._asked_at = exit_status.INTERRUPTED, time.monotonic()
        self._stopping = True

    @property
    def status(self) -> int:
        """Exit status of a run that has stopped, or finished."""
        return self._agreed

    @property
    def asked(self) -> tuple[bool, bool]:
        """Whether this rank has been asked to stop, and whether by Ctrl-C."""
        return self._stopping, self._asked == exit_status.INTERRUPTED

    def agree(self, stopping: bool, interrupted: bool) -> bool:
        """Note what any rank was asked, which all ranks know at the same step; return whether to stop."""
        self._agreed = exit_status.INTERRUPTED if interrupted else exit_status.FINISHED
        return stopping

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
