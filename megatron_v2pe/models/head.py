"""The loss head: supervised tokens only, vocabulary-parallel, in chunks, with padded columns masked.

Long samples supervise a few tokens in a hundred thousand; only those are projected to the vocabulary. Each chunk is
recomputed in the backward pass, so that logits never exist for more than one chunk.

The same pass says how much of the loss each data set gave, where the targets say to which set each row belongs: sums
beside the loss, which has the same bits with and without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """What the head has to predict: which of a rank's rows predict which tokens, with what weight."""

    rows: Tensor
    """int64 [n], ascending: indices among this context-parallel rank's tokens of those whose successor is learned."""
    tokens: Tensor
    """int64 [n]: the tokens to predict."""
    weights: Tensor
    """float [n]: loss weights."""
    slice_counts: tuple[int, ...]
    """How many of the rows lie in each slice of sequence parallelism; one slice without it."""
    sets: Tensor | None = None
    """int64 [n]: the number of the data set that each row belongs to; None: no sums by set are asked for."""
    num_sets: int = 0
    """How many data sets there are; each gets a sum."""

    @classmethod
    def from_labels(
        cls,
        labels: Tensor,
        weights: Tensor,
        ignore_index: int = -100,
        slices: int = 1,
        sets: Tensor | None = None,
        num_sets: int = 0,
    ) -> Targets:
        """Collect the supervised rows of shifted `labels` [S] and `weights` [S], on the host; `slices` are equal.

        `sets` [S] gives the number of each token's data set, below `num_sets`.
        """
        rows = (labels != ignore_index).nonzero().squeeze(1)
        counts = torch.bincount(rows // (labels.shape[0] // slices), minlength=slices).tolist()
        of_rows = None if sets is None else sets[rows]
        return cls(rows, labels[rows], weights[rows], tuple(counts), of_rows, num_sets)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """Return a copy whose every tensor is what `change` made of it."""
        return replace(
            self,
            rows=change(self.rows),
            tokens=change(self.tokens),
            weights=change(self.weights),
            sets=None if self.sets is None else change(self.sets),
        )


class LossSums(NamedTuple):
    """The loss of a rank's rows, and what each data set gave to it."""

    total: Tensor
    """Weighted sum of token losses, a scalar; it has a graph."""
    by_set: Tensor
    """The same sum of the rows of each data set: float64 [sets], without a graph. They add up to `total`."""


def supervised_states(hidden: Tensor, targets: Targets, group: dist.ProcessGroup) -> Tensor:
    """Bring the hidden states of supervised rows together: [n, 1, hidden], the same on every tensor-parallel rank.

    Under sequence parallelism each rank chooses among its slice first, and only what was chosen is gathered, in parts
    of equal size (the largest count); no rank sees the whole sequence.

    Args:
        hidden: [S, 1, hidden], or this rank's slice of it where `targets` has several slices.
        targets: the supervised rows, at least one.
        group: the tensor-parallel group.
    """
    counts = targets.slice_counts
    if len(counts) == 1:
        return _SelectRows.apply(hidden, targets.rows)
    rank, longest = group.rank(), max(counts)
    mine = targets.rows.split(counts)[rank] - rank * hidden.shape[0]
    chosen = F.pad(_SelectRows.apply(hidden, mine), (0, 0, 0, 0, 0, longest - len(mine)))
    gathered = tensor_parallel.gather_from_sequence_parallel_region(
        chosen, tensor_parallel_output_grad=False, group=group
    )
    real = [torch.arange(count, device=hidden.device) + part * longest for part, count in enumerate(counts)]
    return gathered.index_select(0, torch.cat(real))


class _SelectRows(torch.autograd.Function):
    """Distinct rows of a tensor; backward writes into one tensor of zeros, where PyTorch's would make a second."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rows: Tensor) -> Tensor:
        ctx.shape = hidden.shape
        ctx.save_for_backward(rows)
        return hidden.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(0, rows, gradient), None


class VocabParallelNLL(torch.autograd.Function):
    """Negative log-likelihood from logits split by vocabulary columns over tensor-parallel ranks.

    Computed in float32, or float64 where the logits are; memory is one copy of the local logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, first_column: int, group: dist.ProcessGroup) -> Tensor:
        """Return [n] from local logits [n, columns] and global target ids [n]."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        maximum = wide.amax(-1)
        dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=group)
        probabilities = (wide - maximum.unsqueeze(-1)).exp_()
        local = targets - first_column
        held = (local >= 0) & (local < logits.shape[1])
        local = local.clamp(0, logits.shape[1] - 1)
        chosen = torch.where(held, wide.gather(1, local.unsqueeze(1)).squeeze(1) - maximum, 0.0)
        sums = torch.stack([probabilities.sum(-1), chosen])
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(probabilities.div_(sums[0].unsqueeze(-1)), local, held)
        ctx.dtype = logits.dtype
        return sums[0].log() - sums[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Return softmax minus one-hot, times the incoming gradient [n]."""
        probabilities, local, held = ctx.saved_tensors
        result = probabilities * gradient.unsqueeze(-1)
        result.scatter_add_(1, local.unsqueeze(1), -torch.where(held, gradient, 0.0).unsqueeze(1))
        return result.to(ctx.dtype), None, None, None


def masked_logits(
    output_layer: ColumnParallelLinear, weight: Tensor, hidden: Tensor, vocab_size: int
) -> tuple[Tensor, int]:
    """Project [n, 1, hidden] to this rank's vocabulary columns; padded columns get -inf.

    Args:
        output_layer: the vocabulary projection.
        weight: its weight, [columns, hidden].
        hidden: [n, 1, hidden].
        vocab_size: unpadded vocabulary size.

    Returns:
        logits [n, columns] and the global index of the first column.
    """
    logits = output_layer(hidden, weight=weight)[0].squeeze(1)
    columns = logits.shape[1]
    first = columns * dist.get_rank(output_layer.tp_group)
    if first + columns > vocab_size:
        padded = torch.arange(first, first + columns, device=logits.device) >= vocab_size
        logits = logits.masked_fill_(padded, -math.inf)  # no copy: the projection's backward does not read them
    return logits, first


def weighted_nll_sum(
    output_layer: ColumnParallelLinear,
    weight: Tensor,
    hidden: Tensor,
    targets: Targets,
    vocab_size: int,
    chunk_size: int,
) -> LossSums:
    """Return the sum of `weight * -log p(token)` over the supervised rows of a rank's hidden states.

    Args:
        output_layer: the vocabulary projection, which takes unsplit sequences.
        weight: its weight, [columns, hidden].
        hidden: [S, 1, hidden], or a slice of it under sequence parallelism.
        targets: the supervised rows, none or many; ranks may have different numbers.
        vocab_size: unpadded vocabulary size.
        chunk_size: rows projected at a time.

    Returns:
        The sum in float32 or wider, and the sums of `targets.num_sets` data sets. The sum always has a graph: with
        nothing supervised it is zero times the hidden state, because a loss without a graph would skip the backward
        pass on this rank only.
    """

    # One node in front of the parameter: however many chunks there are, its gradient arrives once. Overlapped gradient
    # reduction counts arrivals and would start too early, or never, if they varied from step to step.
    weight = weight.view_as(weight)

    def chunk_sums(
        weight: Tensor, rows: Tensor, tokens: Tensor, weights: Tensor, sets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits, first = masked_logits(output_layer, weight, rows, vocab_size)
        losses = VocabParallelNLL.apply(logits, tokens, first, output_layer.tp_group)
        weighted = losses * weights.to(losses.dtype)
        return weighted.sum(), _sums_of_sets(weighted.detach(), sets, targets.num_sets)

    if targets.rows.numel() == 0:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        nothing = 0 * (hidden[:1].sum().to(wide) + weight[:1, :1].sum().to(wide))
        return LossSums(nothing, torch.zeros(targets.num_sets, dtype=torch.float64, device=hidden.device))
    selected = supervised_states(hidden, targets, output_layer.tp_group)
    parts = [selected, targets.tokens, targets.weights, *([] if targets.sets is None else [targets.sets])]
    chunks = [part.split(chunk_size) for part in parts]
    if len(chunks[0]) == 1:
        return LossSums(*chunk_sums(weight, *parts))
    sums = [tensor_parallel.checkpoint(chunk_sums, False, weight, *these) for these in zip(*chunks, strict=True)]
    return LossSums(sum(total for total, _ in sums), torch.stack([by_set.detach() for _, by_set in sums]).sum(0))


def _sums_of_sets(losses: Tensor, sets: Tensor | None, num_sets: int) -> Tensor:
    """Add up losses [n] by the number of their set: float64 [num_sets], in an order that does not change.

    A scatter would be shorter; on CUDA its order, and so its last bits, differ from run to run.
    """
    if sets is None:
        return torch.zeros(num_sets, dtype=torch.float64, device=losses.device)
    numbers = torch.arange(num_sets, device=losses.device).unsqueeze(1)
    return torch.where(sets == numbers, losses.to(torch.float64), 0.0).sum(1)
