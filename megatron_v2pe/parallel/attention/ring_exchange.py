"""A ring of ranks that hand tensors on while they compute, on any backend.

Blocks travel towards lower ranks: rank r sends to r - 1 and receives from r + 1. In that direction the ranks that need
all of a zigzag block come first and those that need only its first chunk last, so half of it can be left behind on the
way (`ring.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import CommunicationError


class Handover:
    """Tensors on their way; `wait` gives those that arrived."""

    def __init__(self, arriving: list[Tensor], leaving: Sequence[Tensor], work: Sequence[dist.Work], what: str) -> None:
        """Remember both sides: what leaves must stay alive until it has been sent."""
        self._arriving, self._leaving, self._work, self._what = arriving, leaving, work, what

    def wait(self) -> list[Tensor]:
        """Return the tensors of the rank above once they are here and ours are sent.

        Raises:
            CommunicationError: a neighbour has died, or did not answer within the group's timeout.
        """
        try:
            for work in self._work:
                work.wait()
        except RuntimeError as error:
            raise CommunicationError(
                f"{self._what}: a neighbour no longer answers. One of the two has died or hangs; its own output says "
                f"why ({error})"
            ) from error
        self._leaving = ()
        return self._arriving


class Ring:
    """This rank's place in a process group seen as a ring."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Find the neighbours."""
        self.group = group
        self.rank, self.size = group.rank(), group.size()
        ranks = dist.get_process_group_ranks(group)
        self._below, self._above = ranks[(self.rank - 1) % self.size], ranks[(self.rank + 1) % self.size]

    def pass_on(self, tensors: Sequence[Tensor], rows: int, step: int) -> Handover:
        """Send tensors to the rank below and receive as many, of `rows` rows each, from the rank above.

        Args:
            tensors: contiguous, alike but for their number of rows.
            rows: rows of what arrives.
            step: number of the step, for messages.
        """
        watchdog.progress("ring attention")
        arriving = [tensor.new_empty((rows, *tensor.shape[1:])) for tensor in tensors]
        # What arrives is waited for first: it tells of a dead neighbour at once. Gloo may forget a send whose receiver
        # died after it had said that it was ready; a wait for it lasts until the timeout or the end of the run.
        operations = [dist.P2POp(dist.irecv, tensor, self._above, self.group) for tensor in arriving]
        operations += [dist.P2POp(dist.isend, tensor, self._below, self.group) for tensor in tensors]
        what = (
            f"ring attention, step {step} of {self.size}, rank {dist.get_rank()} (sends to rank {self._below}, "
            f"receives from rank {self._above})"
        )
        try:
            work = dist.batch_isend_irecv(operations)
        except RuntimeError as error:
            raise CommunicationError(f"{what}: cannot reach a neighbour ({error})") from error
        return Handover(arriving, tensors, work, what)
