"""How far a step moves the weights of each part of the model, as a share of their norm.

What is compared is what the optimizer steps by: the float32 master copy under bf16, whose rounding would be many times
the step. In a step whose turn it is a copy of it is taken on the host before the update, and compared after it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.device import host_memory
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.ddp import unwrapped
from megatron_v2pe.train.health.part_norms import NAMES, length_of, named, number_of, stepped

_log = get_logger(__name__)


class UpdateRatios(AfterStep):
    """The norm of a step's change of the weights that learn over the norm of these weights, by part, now and then."""

    name = "update ratios"

    def __init__(self, model: DistributedDataParallel, optimizer: MegatronOptimizer, interval: int | None) -> None:
        """Remember what is to be measured.

        Args:
            model: this rank's wrapped stage.
            optimizer: of the run.
            interval: steps between two measurements; None: never.
        """
        self._model, self._optimizer, self._interval = model, optimizer, interval
        self._before: tuple[int, list[tuple[int, Tensor, Tensor]]] | None = None
        """Number of a step; the part, the tensor, and a copy on the host, of all that this rank has to count."""
        self._room: bool | None = None
        """Whether there is memory for the copies; None: not asked yet."""

    def before_update(self, step: int) -> None:
        """Copy what the optimizer steps by, if it is the step's turn; the host waits for the device."""
        self._before = None
        if self._interval is not None and step % self._interval == 0 and self._has_room():
            copied = [(number, weight, weight.to("cpu", copy=True)) for number, weight in self._counted()]
            self._before = step, copied

    def _has_room(self) -> bool:
        """Return whether the copies take at most half of what is left on every machine; ranks find it out together."""
        if self._room is None:
            need = sum(weight.numel() * weight.element_size() for _, weight in self._counted())
            free, everyone = host_memory.available_bytes(), dist.group.WORLD
            self._room = True
            for host, needed, there in host_memory.needed_and_free(socket.gethostname(), need, free, everyone):
                if 2 * needed > there:
                    self._room = False
                    _log.warning(
                        "health/update_ratio is left out: copies of the weights take %.1f GiB on %s, and more than "
                        "half of the %.1f GiB that are left there are not taken for it",
                        needed / 2**30,
                        host,
                        there / 2**30,
                    )
        return self._room

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether the step that was done last is one that is measured, and was not skipped."""
        return self._before is not None and self._before[0] == iteration

    @torch.no_grad()
    def run(self, iteration: int) -> Mapping[str, float]:
        """Return `health/update_ratio/<part>`; every rank calls this, and the host waits."""
        assert self._before is not None
        _, weights = self._before
        self._before = None
        device = next(self._model.parameters()).device
        squares = torch.zeros(2, len(NAMES), dtype=torch.float64, device=device)
        for number, weight, copied in weights:
            old = copied.to(weight.device)
            for row, tensor in enumerate((weight - old, old)):
                squares[row, number] += (length_of(tensor) ** 2).to(device)
        dist.all_reduce(squares)
        changes, norms = squares.sqrt().tolist()
        ratios = [change / norm if norm else 0.0 for change, norm in zip(changes, norms, strict=True)]
        return named("health/update_ratio", ratios)

    def _counted(self) -> Iterator[tuple[int, Tensor]]:
        """Yield part and tensor of all that the optimizer steps by; what several ranks hold alike on one of them."""
        numbers = {parameter: number_of(name) for name, parameter in unwrapped(self._model).named_parameters()}
        group = parallel_state.get_tensor_model_parallel_group()
        is_first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        for member in getattr(self._optimizer, "chained_optimizers", [self._optimizer]):
            if not is_first and not isinstance(member, DistributedOptimizer):
                continue
            for parameter, tensor in stepped(member):
                counts = param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, group)
                if parameter in numbers and counts:
                    yield numbers[parameter], _master(member.optimizer, tensor)


def _master(optimizer: Any, tensor: Tensor) -> Tensor:
    """Return the float copy that an optimizer keeps in its state in place of what it is given, where it has one."""
    found = optimizer.state.get(tensor, {}).get("master_param", tensor)
    return (found if found.is_floating_point() else tensor).detach()
