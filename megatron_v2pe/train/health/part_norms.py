"""Norms of gradients and of weights by part of the model, each value counted once in any layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor, nn

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.ddp import gather_parameters, unwrapped
from megatron_v2pe.train.optimizers.parts import PARTS, part_of

_NUMBERS = {part: number for number, part in enumerate(PARTS)}
NAMES = tuple(PARTS.values())
"""Parts of a model in the order of their norms, by the names they have in logs."""


def number_of(name: str) -> int:
    """Return the place in `NAMES` of the part to which a parameter belongs, by its name in the stage."""
    return _NUMBERS[part_of(name)]


class PartsOfGradients:
    """Says to which part of a model each gradient of an optimizer belongs (`optimizer_step.GradientParts`).

    An optimizer steps by tensors of its own, such as a shard of a parameter or its copy in float32. Those of an
    optimizer that is not Megatron-Core's belong to no part, unless they are the model's own parameters.
    """

    def __init__(self, model: nn.Module, optimizer: MegatronOptimizer) -> None:
        """Look up what the optimizer steps by.

        Args:
            model: this rank's stage, unwrapped.
            optimizer: of the run.
        """
        numbers = {parameter: number_of(name) for name, parameter in model.named_parameters()}
        self._parts = {id(parameter): number for parameter, number in numbers.items()}
        for member in getattr(optimizer, "chained_optimizers", [optimizer]):
            known = ((parameter, tensor) for parameter, tensor in stepped(member) if parameter in numbers)
            self._parts |= {id(tensor): numbers[parameter] for parameter, tensor in known}
        self._known: dict[tuple[Any, ...], Tensor] = {}

    @property
    def count(self) -> int:
        """Return how many parts there are."""
        return len(NAMES)

    def membership(self, optimizer: Any, gradients: Sequence[Tensor], device: torch.device) -> Tensor:
        """Return float32 [parts, gradients]: 1 where a gradient belongs to a part, 0 elsewhere.

        The same matrix serves every step; only the first copies it to the device.
        """
        owners = dict[int, int | None]()
        for parameter in optimizer.get_parameters():
            part = self._parts.get(id(parameter))
            owners[id(parameter.grad)] = owners[id(getattr(parameter, "decoupled_grad", None))] = part
        numbers = tuple(owners.get(id(gradient)) for gradient in gradients)
        if (device, numbers) not in self._known:
            matrix = torch.zeros(self.count, len(numbers))
            for place, number in enumerate(numbers):
                if number is not None:
                    matrix[number, place] = 1
            self._known[device, numbers] = to_device(matrix, device)
        return self._known[device, numbers]


def stepped(optimizer: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield parameters of the model, each with what one of Megatron-Core's optimizers steps by.

    That is this rank's share of the parameter with the distributed optimizer, its copy in float32 under bf16, and the
    parameter itself elsewhere. On a stage where nothing learns there is nothing.
    """
    if getattr(optimizer, "is_stub_optimizer", False):
        return
    if isinstance(optimizer, DistributedOptimizer):
        for parameter, (group, order) in optimizer.model_param_group_index_map.items():
            yield parameter, optimizer.optimizer.param_groups[group]["params"][order]
    elif isinstance(optimizer, Float16OptimizerWithFloat16Params):
        for own, copies in zip(optimizer.float16_groups, optimizer.fp32_from_float16_groups, strict=True):
            yield from zip(own, copies, strict=True)
        for own in optimizer.fp32_from_fp32_groups:
            yield from zip(own, own, strict=True)
    else:
        for group in optimizer.param_groups:
            yield from zip(group["params"], group["params"], strict=True)


def named(prefix: str, norms: Sequence[float]) -> dict[str, float]:
    """Return norms of parts as a row has them; a part of which nothing is there, or nothing learns, is left out."""
    return {f"{prefix}/{name}": norm for name, norm in zip(NAMES, norms, strict=True) if norm}


@torch.no_grad()
def weight_norms(model: nn.Module) -> list[float]:
    """Return the norm of the weights of each part, the same on every rank; every rank calls this, and the host waits.

    A weight that several ranks hold alike counts once, as in the norm of the gradients. Sums are in float64.

    Args:
        model: this rank's stage, unwrapped, its parameters complete.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    squares: list[Tensor | float] = [0.0] * len(NAMES)
    device = next(model.parameters()).device
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0:
        for name, parameter in model.named_parameters():
            if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, group):
                squares[number_of(name)] += length_of(parameter.detach()) ** 2
    total = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device) for one in squares])
    dist.all_reduce(total)
    return total.sqrt().tolist()


def length_of(tensor: Tensor) -> Tensor:
    """Return the norm of a tensor, formed in float32 at least; float64 of no dimension on its device."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).to(torch.float64)


class WeightNorms(AfterStep):
    """The norm of the weights of each part, now and then."""

    name = "weight norms"

    def __init__(self, model: DistributedDataParallel, interval: int | None) -> None:
        """Remember the model and the steps between two measurements; None: never."""
        self._model, self._interval = model, interval

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether a multiple of the interval is reached."""
        return self._interval is not None and iteration > 0 and iteration % self._interval == 0

    def run(self, iteration: int) -> Mapping[str, float]:
        """Return `health/weight_norm/<part>`."""
        gather_parameters(self._model)
        return named("health/weight_norm", weight_norms(unwrapped(self._model)))
