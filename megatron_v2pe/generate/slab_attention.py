"""Attention of one new token of each sequence over a slab of the cache: in one call on CPU, one by one elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.parallel.block_attention import Block, choose_kernel


def side_by_side(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Sequence[int],
    used: int,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend over a slab in one call of PyTorch's CPU flash operator; queries of a group share its keys.

    Args:
        query: [n, groups, r, d].
        keys: [n, room, groups, d].
        values: as `keys`.
        lengths: tokens of each sequence, at most `used`.
        used: places looked at.
        mask: [n, 1, 1, used], -inf where a place is not the sequence's; None where all are.
        scale: factor on the scores.

    Returns:
        The output [n, groups, r, d] and its log-sum-exp [n, groups, r].
    """
    k, v = keys[:, :used].transpose(1, 2), values[:, :used].transpose(1, 2)
    allowed = None if mask is None else mask.expand(*query.shape[:3], used)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, k, v, 0.0, False, attn_mask=allowed, scale=scale
    )


def one_by_one(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Sequence[int],
    used: int,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend over a slab sequence by sequence with the block kernels, on any device; as `side_by_side`.

    A sequence of no tokens is given the first place, to be replaced by the caller.
    """
    kernel = choose_kernel(query)
    found = []
    for row, length in enumerate(lengths):
        length = max(length, 1)
        block = Block((query.shape[2],), (length,), False, scale)
        asked = query[row].transpose(0, 1)  # the queries of a group as so many tokens
        output, lse = kernel.forward(asked, keys[row, :length], values[row, :length], block)
        found.append((output.transpose(0, 1), lse.transpose(0, 1)))
    outputs, sums = zip(*found, strict=True)
    return torch.stack(outputs), torch.stack(sums)


def nothing(query: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over no keys, for queries [..., d]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    floor = torch.finfo(torch.float32).min / 2  # finite: two ranks without keys merge without a NaN
    return query.new_zeros(query.shape), torch.full(query.shape[:-1], floor, dtype=wide, device=query.device)
