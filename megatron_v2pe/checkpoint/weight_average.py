"""A moving average of the weights that learn (EMA): kept in float32, updated with every step, stored in checkpoints.

After each step `average = decay * average + (1 - decay) * weight`, where the weight is what the optimizer updates: the
float32 master copy under bf16. Each rank averages what its optimizer holds, a share of it with the distributed
optimizer. Checkpoints hold every tensor whole, as they hold the optimizer's moments, so that any layout goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from megatron_v2pe.checkpoint.folder import AVERAGED

_ATTRIBUTE = "v2pe_weight_average"


@dataclass
class _Averaged:
    """What of a parameter this rank averages."""

    parameter: nn.Parameter
    weight: Tensor
    """What the optimizer updates: the whole, or a flat share."""
    average: Tensor
    begin: int | None = None
    """Where a share begins in the flat parameter; None: it is whole."""

    def share_of(self, whole: Tensor) -> Tensor:
        """Return of a tensor in the shape of the parameter what this rank averages, as a view."""
        return whole if self.begin is None else whole.view(-1).narrow(0, self.begin, self.average.numel())


class WeightAverage:
    """The average of what one rank's optimizer updates."""

    def __init__(self, optimizer: MegatronOptimizer, model: nn.Module, decay: float) -> None:
        """Begin with the weights as they are, and follow every step of the optimizer from now on.

        Args:
            optimizer: of the run; `average_of` finds the average there.
            model: this rank's stage.
            decay: share of the average that stays in a step.
        """
        self.decay = decay
        members = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._of: dict[nn.Parameter, _Averaged] = {}
        self._group: dist.ProcessGroup | None = None
        for member in members:
            if getattr(member, "is_stub_optimizer", False):
                continue
            found = self._shares(member) if isinstance(member, DistributedOptimizer) else self._wholes(member)
            self._of |= {one.parameter: one for one in found}
            weights, averages = [one.weight for one in found], [one.average for one in found]
            member.optimizer.register_step_post_hook(lambda *_, a=averages, w=weights: self._update(a, w))
        setattr(optimizer, _ATTRIBUTE, self)

    def _shares(self, member: Any) -> list[_Averaged]:
        self._group = member.data_parallel_group
        found = []
        for parameter, (group, order) in member.model_param_group_index_map.items():
            weight = member.optimizer.param_groups[group]["params"][order]
            begin = member._get_model_param_range_map(parameter)["param"].start
            found.append(_Averaged(parameter, weight, _begun(weight), begin))
        return found

    def _wholes(self, member: Any) -> list[_Averaged]:
        held = {id(weight): weight for group in member.optimizer.param_groups for weight in group["params"]}
        pairs = [(parameter, getattr(parameter, "main_param", parameter)) for parameter in self._learning]
        return [_Averaged(parameter, weight, _begun(weight)) for parameter, weight in pairs if id(weight) in held]

    @torch.no_grad()
    def _update(self, averages: list[Tensor], weights: list[Tensor]) -> None:
        if averages:
            torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        for one in self._of.values():
            one.average.copy_(one.weight)

    @torch.no_grad()
    def wholes(self) -> list[Tensor]:
        """Return this stage's averages, each in the shape of its parameter; every rank calls this."""
        return [self._whole(parameter, False) for parameter in self._learning]

    @torch.no_grad()
    def described(self, model_state: Mapping[str, Any], for_loading: bool) -> dict[int, Any]:
        """Describe the averages for a checkpoint, each in the shape of its parameter; every rank calls this.

        Args:
            model_state: what the model has said of itself (`sharded_state_dict`).
            for_loading: tensors are made to be filled; nothing is exchanged.
        """
        stored, _ = extract_sharded_tensors_and_factories(dict(model_state))
        by_parameter = {id(one.data): one for one in nested_values(stored)}
        return {
            number: make_sharded_optimizer_tensor(
                by_parameter[id(parameter)], self._whole(parameter, for_loading), AVERAGED.rstrip(".")
            )
            for number, parameter in enumerate(self._learning)
        }

    def _whole(self, parameter: nn.Parameter, is_empty: bool) -> Tensor:
        held = self._of.get(parameter)
        if held is not None and held.begin is None:
            return torch.empty_like(held.average) if is_empty else held.average
        if is_empty:
            return torch.empty(parameter.shape, dtype=torch.float32)
        whole = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        if held is not None:
            held.share_of(whole).copy_(held.average)
        dist.all_reduce(whole, group=self._group)  # shares do not overlap
        return whole.cpu()

    @torch.no_grad()
    def load(self, state: Mapping[int, Tensor]) -> None:
        """Take over averages that a checkpoint holds, described by `described`."""
        for number, parameter in enumerate(self._learning):
            if (held := self._of.get(parameter)) is None:
                continue
            held.average.copy_(held.share_of(state[number]))


def _begun(weight: Tensor) -> Tensor:
    return weight.detach().float().clone()


def average_of(optimizer: MegatronOptimizer) -> WeightAverage | None:
    """Return the average that follows an optimizer, None where there is none."""
    return getattr(optimizer, _ATTRIBUTE, None)
