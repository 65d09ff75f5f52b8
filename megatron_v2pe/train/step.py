"""Forward and backward of one training step through Megatron-Core's schedules, with one loss.

The loss is the weighted sum of token losses divided by the sum of weights over all micro-batches and data-parallel
ranks; context-parallel ranks add what their own tokens give. The denominator is known before the first forward pass,
so every micro-batch contributes a plain sum and gradients are summed, never averaged again. (Megatron-Core's own token
count is an integer and cannot carry weights.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor, nn

from megatron_v2pe.models.micro_batch import MicroBatch


def forward_backward(
    model: nn.Module,
    micro_batches: Iterable[MicroBatch],
    num_micro_batches: int,
    denominator: float,
    forward_only: bool = False,
) -> float:
    """Run one step's micro-batches; gradients end up reduced in the model's gradient buffers.

    Args:
        model: this rank's wrapped pipeline stage.
        micro_batches: this rank's shares of its micro-batches, of the same packs on all its tensor, context and
            pipeline ranks; made one at a time where they come from a generator.
        num_micro_batches: how many there are.
        denominator: global sum of loss weights, see `micro_batch.global_weight`.
        forward_only: compute the loss without gradients.

    Returns:
        The loss of the whole step over all micro-batches and data-parallel ranks, on every rank.
    """
    reports = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, denominator=denominator),
        data_iterator=iter(micro_batches),
        model=[model],
        num_microbatches=num_micro_batches,
        seq_length=1,  # not used: with variable lengths the stages send each other the shapes
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return _total_loss(reports, next(model.parameters()).device)


def _forward_step(iterator: Iterator[MicroBatch], model: nn.Module, denominator: float) -> tuple[Tensor, Any]:
    output = model(batch=next(iterator))
    return output, partial(_loss, denominator=denominator)


def _loss(loss_sum: Tensor, denominator: float) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron-Core's triple: a normalised loss, a token count of zero so that nothing rescales it, a report."""
    loss = loss_sum / denominator
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), loss.detach().clone()


def _total_loss(reports: list[Tensor], device: torch.device) -> float:
    """Sum the losses of micro-batches and of data and context-parallel ranks, for every pipeline stage."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for report in reports:
        total += report.to(torch.float64)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return total.item()
