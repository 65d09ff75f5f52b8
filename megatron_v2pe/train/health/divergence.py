"""Do all ranks still hold what they must hold alike? Compared now and then, by sums of bits.

Copies of the model (data- and context-parallel ranks) must have the same weights, tensor-parallel ranks the same
replicated ones (norms, biases, a replicated tower), first and last pipeline stage the same tied weight, and all ranks
the same step, learning rates, optimizer step counts and place in the data. A flipped bit changes the sum of a
parameter's bits read as integers; the sums are exact and do not depend on an order. They are formed on the device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor, nn

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import TrainingError
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.ddp import gather_parameters, unwrapped

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TIED = ("language_model.embedding.word_embeddings.weight", "language_model.output_layer.weight")
_log = get_logger(__name__)


class Divergence(AfterStep):
    """Compares what ranks must hold alike; ends the run, or warns, where it differs."""

    name = "divergence"

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: MegatronOptimizer,
        interval: int | None,
        stops: bool,
        place_in_data: Callable[[], Mapping[str, Any] | None],
        last_checkpoint: str,
    ) -> None:
        """Remember what to compare.

        Args:
            model: this rank's wrapped stage.
            optimizer: of the run.
            interval: steps between two comparisons; None: never.
            stops: whether a difference ends the run.
            place_in_data: returns what has been consumed of the data, None on a rank that reads none.
            last_checkpoint: in words, the checkpoint to go back to before this process has saved one.
        """
        self._model, self._optimizer, self._interval, self._stops = model, optimizer, interval, stops
        self._place_in_data, self._last_good = place_in_data, last_checkpoint
        self._agreed = -1
        """Step after which all agreed last."""

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether a multiple of the interval is reached."""
        return self._interval is not None and iteration > 0 and iteration % self._interval == 0

    def run(self, iteration: int) -> Mapping[str, float]:
        """Compare, and return how many things differ.

        Raises:
            TrainingError: something differs, and the run is to end; names it, and the ranks, on every rank.
        """
        gather_parameters(self._model)
        found = differences(unwrapped(self._model), self._optimizer, iteration, self._place_in_data())
        if not found:
            self._agreed = iteration
            return {"health/diverged": 0.0}
        named = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        text = f"after step {iteration} ranks hold different values of what must be the same: {named}"
        if self._stops:
            raise TrainingError(
                f"{text}. Nothing is saved; go on from {self._last_good}, and look at the hardware of the ranks named "
                "(health.divergence warn goes on all the same)"
            )
        if dist.get_rank() == 0:
            _log.error("%s", text)
        return {"health/diverged": float(len(found))}

    def saved(self, iteration: int) -> None:
        """Take note of a checkpoint; one whose ranks were compared and agreed is the one to go back to."""
        agreed = "compared and alike" if self._agreed == iteration else "not compared at that step"
        self._last_good = f"the checkpoint of step {iteration} ({agreed})"


def differences(
    model: nn.Module, optimizer: MegatronOptimizer, iteration: int, place: Mapping[str, Any] | None
) -> list[str]:
    """Return what ranks hold differently, in words, the same on every rank; every rank calls this, and the host waits.

    Args:
        model: this rank's stage, unwrapped, its parameters complete.
        optimizer: of the run.
        iteration: steps done.
        place: place in the data; None on a rank that reads none.
    """
    mine = held_alike(model, optimizer) | {"the number of steps done": iteration}
    if place is not None:
        digest = hashlib.sha256(json.dumps(place, sort_keys=True).encode()).digest()
        mine["the place in the data"] = int.from_bytes(digest[:6], "big")
    is_first, size = dist.get_rank() == 0, dist.get_world_size()
    everyone: list[Any] | None = [None] * size if is_first else None
    dist.gather_object(mine, everyone, dst=0)
    found: list[Any] = [_compared(everyone) if everyone is not None else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


@torch.no_grad()
def held_alike(model: nn.Module, optimizer: MegatronOptimizer) -> dict[str, int | float]:
    """Return what this rank holds that others must hold too, by names that those ranks give it as well.

    A part of a weight has a name of its stage and tensor-parallel rank, which copies of the model share; a whole weight
    one of its stage.

    Args:
        model: this rank's stage, unwrapped, its parameters complete.
        optimizer: of the run.
    """
    stage, stages = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_world_size(),
    )
    where = f" of stage {stage}" if stages > 1 else ""
    parts = f" of tensor-parallel rank {parallel_state.get_tensor_model_parallel_rank()}"
    parameters = dict(model.named_parameters())
    held = dict[str, int | float]()
    for (name, parameter), bits in zip(parameters.items(), bit_sums(parameters.values()), strict=True):
        part = parts if getattr(parameter, "tensor_model_parallel", False) else ""
        is_tied = getattr(model, "share_embeddings_and_output_weights", False) and name in _TIED
        held[f"tied weight of embedding and head{part}" if is_tied else f"{name}{where}{part}"] = bits
    members = getattr(optimizer, "chained_optimizers", [optimizer])
    groups = [group for member in members for group in getattr(member, "param_groups", ())]
    if groups:
        held[f"the learning rate{where}"] = float(groups[0]["lr"])
    steps = [
        torch.as_tensor(state["step"]).to("cpu")
        for member in members
        for state in getattr(getattr(member, "optimizer", None), "state", {}).values()
        if "step" in state
    ]
    if steps:
        held["the optimizer's count of steps"] = torch.stack(steps).max().item()
    return held


def bit_sums(parameters: Iterable[Tensor]) -> list[int]:
    """Return for each tensor the sum of its bits read as integers, modulo 2^64, and wait for them once.

    Eight bytes are one integer where the tensor's bytes divide by that, whatever its place in memory is.
    """
    sums = [_integers(parameter.detach().contiguous().view(-1)).sum(dtype=torch.int64) for parameter in parameters]
    return torch.stack(sums).tolist() if sums else []


def _integers(flat: Tensor) -> Tensor:
    size = flat.element_size()
    if flat.numel() * size % 8:
        return flat.view(_INTEGERS[size])
    return (flat.clone() if flat.storage_offset() * size % 8 else flat).view(torch.int64)


def _compared(everyone: Sequence[Mapping[str, int | float]]) -> list[str]:
    """Return in words what differs between ranks that hold it under the same name."""
    names = dict.fromkeys(name for held in everyone for name in held)
    found = list[str]()
    for name in names:
        ranks: dict[int | float, list[int]] = {}
        for rank, held in enumerate(everyone):
            if name in held:
                ranks.setdefault(held[name], []).append(rank)
        if len(ranks) > 1:
            *few, most = sorted(ranks.values(), key=len)
            others = ", ".join(str(rank) for rank in sorted(rank for some in few for rank in some))
            found.append(f"{name}: ranks {others} against {', '.join(map(str, most))}")
    return found
