"""What ranks of one model exchange while they generate: hidden states down the pipeline, tokens to everyone.

Every rank of a copy runs the same program on the same prompts; tokens are chosen by one rank and broadcast, so that no
rounding can make two ranks go on with different answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.device.rank_errors import raise_on_all_ranks

Result = TypeVar("Result")


class Stages:
    """This rank's place in the pipeline and among the ranks of its copy of the model."""

    def __init__(self, pipeline: dist.ProcessGroup, copy: dist.ProcessGroup) -> None:
        """Find the neighbours.

        Args:
            pipeline: the pipeline-parallel group.
            copy: all ranks of this copy of the model.
        """
        self._pipeline, self._copy = pipeline, copy
        self.alone = copy.size() == 1
        """Whether this process has the whole model."""
        self._ranks = dist.get_process_group_ranks(pipeline)
        self.first, self.last = pipeline.rank() == 0, pipeline.rank() == pipeline.size() - 1
        # The chooser is the first rank of the last stage; a stage's ranks stand together in a copy.
        members = dist.get_process_group_ranks(copy)
        self._chooser = members[len(members) // pipeline.size() * (pipeline.size() - 1)]

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Receive hidden states of a shape from the stage before."""
        hidden = torch.empty(shape, dtype=dtype, device=device)
        dist.recv(hidden, self._ranks[self._pipeline.rank() - 1], group=self._pipeline)
        return hidden

    def send(self, hidden: Tensor) -> None:
        """Send hidden states to the stage after."""
        dist.send(hidden.contiguous(), self._ranks[self._pipeline.rank() + 1], group=self._pipeline)

    def share(self, tokens: list[int] | None, count: int, device: torch.device) -> list[int]:
        """Give the tokens one rank of the last stage has chosen to every rank of the copy.

        Args:
            tokens: what this rank would choose; None off the last stage.
            count: how many there are.
            device: of the model.
        """
        if self._copy.size() == 1:
            assert tokens is not None
            return tokens
        box = torch.tensor([0] * count if tokens is None else tokens, device=device)
        dist.broadcast(box, self._chooser, group=self._copy)
        return box.tolist()


def in_step(items: Iterable[Result], size: int, group: dist.ProcessGroup) -> Iterator[Result]:
    """Give what is read one by one on every rank of a group, as many on each; an error on any is raised on all.

    Args:
        items: read as they are asked for.
        size: how many are read before ranks agree that all could.
        group: the ranks.

    Raises:
        V2PEError: what reading met on any rank, see `device.rank_errors`.
    """
    source = iter(items)
    while portion := raise_on_all_ranks(lambda: list(islice(source, size)), group):
        yield from portion
