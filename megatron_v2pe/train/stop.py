"""A polite end: SIGTERM and SIGUSR1 let the running step finish, save, and stop on every rank at the same step."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist


class StopRequest:
    """Notes signals on this rank and agrees on them over all ranks."""

    def __init__(self, device: torch.device) -> None:
        """Install the handlers in this process."""
        self._device = device
        self._asked = False
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Tell whether any rank was asked to stop; every rank calls this at the same step."""
        flag = torch.tensor(int(self._asked), device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def restore(self) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
