"""What the parts of one conversion share: its journal, what was found in its tensors, its sizes and its progress."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from megatron_v2pe.base.progress import Progress
from megatron_v2pe.checkpoint.hf.budget import Budget
from megatron_v2pe.checkpoint.hf.finite import Examined, NumbersOnly
from megatron_v2pe.checkpoint.hf.journal import Journal
from megatron_v2pe.checkpoint.hf.manifest import TensorManifest, TensorSum
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import Fields

EXAMINERS = 2
"""Threads that look at tensors. SHA-256 takes longer than all else: see docs/converting.md for what two gain."""


@dataclass
class Job:
    """One conversion at work."""

    journal: Journal
    numbers: NumbersOnly
    budget: Budget
    progress: Progress
    source: str
    """In messages: where the tensors come from."""
    known: TensorManifest | None = None
    """Sums that the tensors must have, where the source states them."""
    sums: dict[str, TensorSum] = field(default_factory=dict)
    """What is known of the tensors that were looked at."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, examined: Examined) -> None:
        """Take what was found in a tensor, and list it in the journal where there is nothing to say of it.

        Raises:
            CheckpointError: the source's manifest states another sum.
        """
        self.note_known(examined)
        if examined.clean:
            self.journal.add(tensor=examined.name, sha256=examined.sha256)

    def take_over(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], sha256: str) -> None:
        """Take the sum of a tensor that an earlier process has looked at and found nothing to say of."""
        self.note_known(Examined(name, dtype, shape, sha256))

    def note_known(self, examined: Examined) -> None:
        """Take what was found in a tensor that the journal lists already; for errors see `note`."""
        found = TensorSum.of(examined)
        if self.known is not None:
            self.known.compare(found, examined.name, self.source)
        with self._lock:
            self.numbers.note(examined)
            self.sums[examined.name] = found


def examined_before(journal: Journal) -> Mapping[str, str]:
    """Return the SHA-256 of the tensors that the journal lists, by name."""
    lines = (Fields(line, str(journal.path), CheckpointError) for line in journal.found if "tensor" in line)
    return {line.text("tensor"): line.text("sha256") for line in lines}
