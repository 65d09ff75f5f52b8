"""How the tensors of a training checkpoint get to the disk: at once, or by a writer that works beside the next steps.

`store.begin_save` hands every rank's tensors to a `CheckpointWriter`; `SaveInProgress.commit` waits for it, writes what
lies beside the tensors and puts the folder in place. Today `store.save` does both at once, called by `_save` in
`train/main.py`, which the loop (`train/loop.py`) calls between steps. A writer that returns from `begin` early needs a
loop that keeps the `SaveInProgress` and calls `commit` some steps later, before the next save begins (a save removes
what an unfinished one has left) and at the end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch.distributed as dist

from megatron_v2pe.checkpoint.description import Written
from megatron_v2pe.checkpoint.torch_dist import TorchDistWriter

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


class CheckpointWriter(Protocol):
    """Writes one rank's parts of one checkpoint; every checkpoint has a writer of its own."""

    def begin(self, folder: Path, parts: Sequence[ShardedTensor]) -> None:
        """Take this rank's parts, to be written to files of its own in `folder`, which exists.

        The tensors may change as soon as this returns: what is not written by then has to be copied.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        ...

    def wait(self) -> Written:
        """Return what has been written, once all of it is on the disk.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        ...


class SynchronousWriter:
    """Writes in `begin`, one tensor after the other, and returns when all are on the disk."""

    def __init__(self) -> None:
        """Begin with nothing written."""
        self._written = Written()

    def begin(self, folder: Path, parts: Sequence[ShardedTensor]) -> None:
        """Write this rank's parts to one data file; a rank without parts writes none."""
        if not parts:
            return
        with TorchDistWriter(folder, dist.get_rank()) as writer:
            for part in parts:
                assert part.data is not None, part.key
                values = part.data[(None,) * part.prepend_axis_num]
                writer.add(part.key, tuple(part.global_shape), tuple(part.global_offset), values)
        self._written = writer.written

    def wait(self) -> Written:
        """Return what `begin` has written."""
        return self._written
