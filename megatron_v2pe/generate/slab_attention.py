"""Attention of one new token of each sequence over a slab of the cache, in one call on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_v2pe.kernels.decode_attention import FLOOR


def side_by_side(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    used: int,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend over a slab in one call of PyTorch's CPU flash operator; queries of a group share its keys.

    Args:
        query: [n, groups, r, d].
        keys: [n, room, groups, d].
        values: as `keys`.
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


def nothing(query: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over no keys, for queries [..., d]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_zeros(query.shape), torch.full(query.shape[:-1], FLOOR, dtype=wide, device=query.device)
