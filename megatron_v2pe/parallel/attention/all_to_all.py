"""Context-parallel attention by all-to-all: every rank gets whole documents of some heads (DeepSpeed-Ulysses).

Tokens keep the zigzag order between layers; here each rank trades its tokens of all heads for all tokens of its heads
(Jacobs et al., arXiv 2309.14509), puts them into the documents' order, attends, and trades back. Two exchanges a layer
instead of a ring, for context-parallel sizes that divide the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.parallel.attention.block import AttentionResult
from megatron_v2pe.parallel.attention.ring import ring_attention


def all_to_all_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seqlens: Sequence[int],
    order: Tensor,
    group: dist.ProcessGroup,
    scale: float,
    kept: AttentionResult | None = None,
    backend: str = "auto",
) -> tuple[Tensor, AttentionResult]:
    """Attend causally inside each document, never across documents.

    Args:
        query: [S / C, heads, d], this rank's tokens in zigzag order; C divides `heads` and `groups`.
        key: [S / C, groups, d].
        value: [S / C, groups, d].
        seqlens: lengths of the padded documents, summing to S.
        order: int64 [S], brings all ranks' tokens, one rank's behind the other's, into the documents' order.
        group: the context-parallel group of C ranks.
        scale: factor on the scores, usually `d ** -0.5`.
        kept: what an earlier call on the same tensors returned as its second value; attention is not computed again.
        backend: which kernels may be chosen, a value of `parallel.attention_backend`.

    Returns:
        The output [S / C, heads, d]; and output and log-sum-exp of this rank's heads, to be kept for `kept`.
    """
    size, counts = group.size(), (query.shape[1], key.shape[1], value.shape[1])
    assert all(count % size == 0 for count in counts), f"{size} ranks do not divide heads {counts}"
    # One exchange for all three: each destination's heads of query, key and value stand together.
    shares = [tensor.unflatten(1, (size, -1)) for tensor in (query, key, value)]
    joined = _TokensForHeads.apply(torch.cat(shares, dim=2).flatten(1, 2), order, group)
    q, k, v = joined.split([count // size for count in counts], dim=1)
    output, lse = ring_attention(q, k, v, seqlens, None, scale, kept=kept, backend=backend)
    return _HeadsForTokens.apply(output, order, group), (output.detach(), lse)


class _TokensForHeads(torch.autograd.Function):
    """[tokens / C, C * heads, d] to [tokens, heads, d] in the documents' order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.order, ctx.group = order, group
        return _gather_tokens(tensor, order, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _scatter_tokens(gradient, ctx.order, ctx.group), None, None


class _HeadsForTokens(torch.autograd.Function):
    """[tokens, heads, d] in the documents' order to [tokens / C, C * heads, d]."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.order, ctx.group = order, group
        return _scatter_tokens(tensor, order, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _gather_tokens(gradient, ctx.order, ctx.group), None, None


def _gather_tokens(tensor: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
    leaving = tensor.unflatten(1, (group.size(), -1)).transpose(0, 1).contiguous()  # [C, tokens / C, heads, d]
    arrived = torch.empty_like(leaving)
    dist.all_to_all_single(arrived, leaving, group=group)
    return arrived.flatten(0, 1).index_select(0, order)


def _scatter_tokens(tensor: Tensor, order: Tensor, group: dist.ProcessGroup) -> Tensor:
    leaving = torch.empty_like(tensor, memory_format=torch.contiguous_format).index_copy_(0, order, tensor)
    arrived = torch.empty_like(leaving)
    dist.all_to_all_single(arrived, leaving, group=group)
    return arrived.unflatten(0, (group.size(), -1)).transpose(0, 1).flatten(1, 2)
