"""Exact softmax attention over packed documents and over batches of tiles, on any device.

One signature, several kernels: PyTorch's CPU flash operator, flash-attn or PyTorch's variable-length flash attention
on CUDA, and a plain reference that the tests compare them with. Memory is linear in length everywhere but in the
reference. Grouped-query heads are never expanded by us.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

try:  # optional, GPU only
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None


def packed_causal_attention(
    query: Tensor, key: Tensor, value: Tensor, seqlens: Sequence[int], cu_seqlens: Tensor, scale: float
) -> Tensor:
    """Causal attention inside each document, none across documents.

    Args:
        query: [S, heads, d].
        key: [S, groups, d]; `heads` is a multiple of `groups`.
        value: [S, groups, d].
        seqlens: document lengths as Python integers, summing to S.
        cu_seqlens: int32 [documents + 1], their running sum, on the tensors' device.
        scale: factor on the scores, usually `d ** -0.5`.

    Returns:
        [S, heads, d].
    """
    assert sum(seqlens) == query.shape[0], f"documents of {sum(seqlens)} tokens, query of {query.shape[0]}"
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _packed_cuda(query, key, value, cu_seqlens, max(seqlens), scale)
    documents = []
    for q, k, v in zip(query.split(seqlens), key.split(seqlens), value.split(seqlens), strict=True):
        documents.append(_heads_first(q, k, v, causal=True, scale=scale))
    return torch.cat(documents) if len(documents) > 1 else documents[0]


def batched_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Bidirectional attention inside each element of a batch (the vision tower: one tile each).

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d].
        value: [s, b, groups, d].
        scale: factor on the scores.

    Returns:
        [s, b, heads, d].
    """
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    return _attend(q, k, v, causal=False, scale=scale).permute(2, 0, 1, 3)


def reference_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Softmax attention written out, quadratic in memory: what every kernel is compared with.

    Args:
        query: [b, heads, s, d].
        key: [b, groups, s, d].
        value: [b, groups, s, d].
        causal: mask keys after the query.
        scale: factor on the scores.

    Returns:
        [b, heads, s, d].
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if causal:
        length = query.shape[2]
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)


def _heads_first(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> Tensor:
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
    return _attend(q, k, v, causal=causal, scale=scale).squeeze(0).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Attention on [b, heads, s, d] by the flash operator of the tensors' device."""
    if query.device.type == "cpu":
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return operator(query, key, value, 0.0, causal, scale=scale)[0]
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)


def _packed_cuda(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """Variable-length flash attention. Not run where no GPU is at hand."""
    if flash_attn_varlen_func is not None:
        return flash_attn_varlen_func(
            query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, softmax_scale=scale, causal=True
        )
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # a pair only where the log-sum-exp is asked for
    return output
