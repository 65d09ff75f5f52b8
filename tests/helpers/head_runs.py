"""The head's choice of supervised rows over the slices of sequence parallelism; for use inside a `WorkerPool`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor

from megatron_v2pe.models.head import Targets, supervised_states


def random_states(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Hidden states [rows, 1, width] and the gradients that arrive on them, the same on every rank."""
    generator = torch.Generator().manual_seed(5)
    states, gradients = (torch.randn(rows, 1, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return states, gradients


def chosen_states(labels: Tensor, width: int, summed_gradients: bool = False) -> tuple[Tensor, Tensor]:
    """Choose the supervised rows when every rank holds one slice.

    Args:
        labels: int64 [S], shifted.
        width: of the hidden states.
        summed_gradients: plant a fault: gradients, alike on all ranks, are summed over them.

    Returns:
        The rows [n, 1, width], and the gradient of this rank's slice.
    """
    group = dist.group.WORLD
    assert group is not None
    states, gradients = random_states(labels.shape[0], width)
    targets = Targets.from_labels(labels, torch.ones(labels.shape[0]), slices=group.size())
    mine = states.chunk(group.size())[group.rank()].clone().requires_grad_()
    gather = tensor_parallel.gather_from_sequence_parallel_region
    if summed_gradients:
        gather = partial(_summing, gather)
    with patch.object(tensor_parallel, "gather_from_sequence_parallel_region", gather):
        chosen = supervised_states(mine, targets, group)
    chosen.backward(gradients[targets.rows])
    assert mine.grad is not None
    return chosen.detach(), mine.grad


def _summing(
    gather: Callable[..., Tensor], chosen: Tensor, tensor_parallel_output_grad: bool, group: dist.ProcessGroup
) -> Tensor:
    return gather(chosen, tensor_parallel_output_grad=True, group=group)
