"""Forward and backward of a training step by Megatron-Core's schedules, and how its numbers reach the host, once.

The loss is the weighted sum of token losses divided by the sum of weights over all micro-batches and data-parallel
ranks; context-parallel ranks add what their own tokens give. The denominator is known before the first forward pass,
so every micro-batch contributes a plain sum and gradients are summed, never averaged again. (Megatron-Core's own token
count is an integer and cannot carry weights.)

Nothing of a step is read by the host while it runs. Before the parameters are updated all ranks add up one short
vector, which holds all there is to know of the step, and read that: `finish_step`. Only then is the update asked for,
or, where loss or gradients are not finite, left out; it runs on the device while the host prepares the next step. Under
pipeline parallelism Megatron-Core's stages also read the shapes that they send each other, a wait in every exchange of
theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor, nn

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.models.micro_batch import MicroBatch


@dataclass(frozen=True)
class StepResult:
    """What all ranks know of a step once it is done."""

    loss: float
    """Loss of the whole step."""
    set_sums: tuple[float, ...]
    """For each data set the weighted sum of the losses of its tokens; divided by the sum of their weights it is the
    loss of the set, and all together divided by the step's denominator are `loss`."""
    grad_norm: float
    """Norm of all gradients before clipping, as rank 0 has it; NaN or infinite if it is so on any rank."""
    peak_memory_bytes: int
    """Peak memory of the rank that needed most."""
    asked: tuple[bool, ...]
    """For each request a rank may make (`finish_step`), whether any rank has made it."""
    figures: tuple[float, ...] = ()
    """Further figures of the device, as rank 0 has them."""
    host_memory_bytes: int = 0
    """Host memory of the rank whose process and readers hold most."""
    data_wait_seconds: float = 0.0
    """Seconds that the rank which waited longest waited for its data."""

    @property
    def is_finite(self) -> bool:
        """Return whether the parameters may be updated by this step."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def run_micro_batches(
    model: nn.Module,
    micro_batches: Iterable[MicroBatch],
    num_micro_batches: int,
    denominator: float,
    forward_only: bool = False,
    num_sets: int = 0,
    collected: list[Tensor] | None = None,
) -> Tensor:
    """Run one step's micro-batches; gradients end up reduced in the model's gradient buffers.

    Args:
        model: this rank's wrapped pipeline stage.
        micro_batches: this rank's shares of its micro-batches, of the same packs on all its tensor, context and
            pipeline ranks; made one at a time where they come from a generator.
        num_micro_batches: how many there are.
        denominator: global sum of loss weights, not 0.
        forward_only: compute the loss without gradients.
        num_sets: data sets that the micro-batches name (`models.micro_batch.DocumentSets`), 0 where they name none.
        collected: a list that takes what each micro-batch gave, on the device; a stage before the last gives nothing.

    Returns:
        This rank's shares, float64 [1 + num_sets] on the model's device: of the loss, and of the weighted sum of the
        token losses of each data set, not divided. The shares of all ranks of the world add up to these.
    """
    reports: list[Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, denominator=denominator),
        data_iterator=iter(micro_batches),
        model=[model],
        num_microbatches=num_micro_batches,
        seq_length=1,  # not used: with variable lengths the stages send each other the shapes
        micro_batch_size=1,
        forward_only=forward_only,
    )
    shares = torch.zeros(1 + num_sets, dtype=torch.float64, device=next(model.parameters()).device)
    for report in reports:
        shares += report
    if collected is not None:
        collected += reports
    # Tensor-parallel ranks have the same loss, so only the first one's counts. The others' times zero adds 0, or NaN
    # where a rank's own loss is not finite.
    return shares if parallel_state.get_tensor_model_parallel_rank() == 0 else shares * 0


@dataclass(frozen=True)
class HostFigures:
    """What a rank's host has to say of a step, beside what is computed."""

    memory_bytes: int = 0
    """Peak of the device's memory."""
    host_memory_bytes: int = 0
    """Host memory of the process and its readers."""
    data_wait_seconds: float = 0.0
    """Seconds it waited for its data."""


def finish_step(
    loss_shares: Tensor,
    grad_norm: Tensor,
    host: HostFigures,
    asked: Iterable[bool],
    figures: Tensor | None = None,
) -> StepResult:
    """Add up what the ranks have to say of a step, in one exchange, and read it: the wait for the step's end.

    Args:
        loss_shares: shares of this rank, float64 [1 + data sets], see `run_micro_batches`.
        grad_norm: norm of the gradients as this rank has it, float64 of no dimension on the same device.
        host: what the host of this rank knows.
        asked: requests of this rank, as many on all.
        figures: [n] further figures on the same device, as many on all ranks; those of rank 0 count.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    requests, mine = [float(one) for one in asked], astuple(host)
    known = torch.zeros(len(requests) + len(mine) * size, dtype=torch.float64)
    known[: len(requests)] = torch.tensor(requests, dtype=torch.float64)
    known[len(requests) :].view(len(mine), size)[:, rank] = torch.tensor(mine, dtype=torch.float64)
    of_first = grad_norm.reshape(1)
    if figures is not None:
        of_first = torch.cat([of_first, figures.to(torch.float64)])
    of_first = of_first if rank == 0 else of_first * 0
    numbers = torch.cat([loss_shares, of_first, to_device(known, loss_shares.device)])
    dist.all_reduce(numbers)
    (loss, *set_sums), others = _split(numbers.tolist(), len(loss_shares))
    (norm, *found), others = _split(others, len(of_first))
    made, by_rank = _split(others, len(requests))
    memory, host_memory, waited = (max(by_rank[size * i : size * (i + 1)]) for i in range(len(mine)))
    requested = tuple(count > 0 for count in made)
    return StepResult(loss, tuple(set_sums), norm, int(memory), requested, tuple(found), int(host_memory), waited)


def _split(values: list[float], count: int) -> tuple[list[float], list[float]]:
    return values[:count], values[count:]


def asked_anywhere(asked: tuple[bool, bool], device: torch.device) -> tuple[bool, bool]:
    """Return for each of two requests whether any rank has made it, between steps; every rank calls this."""
    made = to_device(torch.tensor(asked, dtype=torch.float64), device)
    dist.all_reduce(made, op=dist.ReduceOp.MAX)
    first, second = made.tolist()
    return first > 0, second > 0


def forward_backward(
    model: nn.Module,
    micro_batches: Iterable[MicroBatch],
    num_micro_batches: int,
    denominator: float,
    forward_only: bool = False,
) -> float:
    """Run one step's micro-batches (`run_micro_batches`) and wait for its loss, the same on every rank."""
    shares = run_micro_batches(model, micro_batches, num_micro_batches, denominator, forward_only)
    dist.all_reduce(shares)
    return shares[0].item()


def _forward_step(iterator: Iterator[MicroBatch], model: nn.Module, denominator: float) -> tuple[Tensor, Any]:
    output = model(batch=next(iterator))
    return output, partial(_loss, denominator=denominator)


def _loss(output: Tensor | tuple[Tensor, Tensor], denominator: float) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron-Core's triple: a normalised loss, a token count of zero so that nothing rescales it, a report.

    Args:
        output: the sum of a micro-batch, or `LossSums`.
        denominator: what the sum is divided by.

    Returns:
        The triple; the report is float64 [1 + data sets], the loss and the sums of the sets.
    """
    loss_sum, by_set = output if isinstance(output, tuple) else (output, None)
    loss = loss_sum / denominator
    report = loss.detach().to(torch.float64).reshape(1)
    report = report.clone() if by_set is None else torch.cat([report, by_set])
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), report
