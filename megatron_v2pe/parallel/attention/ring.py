"""Exact causal attention over packed documents whose tokens are spread over a ring of ranks, or held by one.

Queries stay where they are; keys and values travel (Liu et al., arXiv 2310.01889), the next block in flight while the
current one is computed. Under the zigzag order (`zigzag.py`) every block but a rank's own is seen whole or not at all:
with the keys of rank j, rank r > j computes all its queries over their first chunk, rank r < j its second chunk of
queries over both. So all ranks have the same work at every step, and no block needs a mask. Blocks are merged by
their log-sum-exp in float32 or wider.

What a rank no longer needs does not travel: blocks move towards lower ranks, and once rank 0 has passed one on, all
that are left need only its first chunk; a quarter of the bytes is saved. Only the rank's own keys and values are kept
for the backward pass, in which blocks travel again with the gradients of their keys and values behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.parallel.attention.block import AttentionBlock, AttentionResult, BlockKernel
from megatron_v2pe.parallel.attention.kernel_choice import choose_kernel
from megatron_v2pe.parallel.attention.ring_exchange import Handover, Ring


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    local_seqlens: Sequence[int],
    group: dist.ProcessGroup | None,
    scale: float,
    kernel: BlockKernel | None = None,
    kept: AttentionResult | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each document, none across documents.

    Args:
        query: [S, heads, d], this rank's tokens in zigzag order.
        key: [S, groups, d]; `heads` is a multiple of `groups`.
        value: [S, groups, d].
        local_seqlens: this rank's tokens of each document, summing to S; even numbers where there is a ring.
        group: the ring; None, or a group of one, where this rank holds whole documents.
        scale: factor on the scores, usually `d ** -0.5`.
        kernel: computes the blocks; the fastest for the tensors by default.
        kept: what an earlier call on the same tensors returned: nothing is computed, and only the graph is made.
        backend: which kernels may be chosen, a value of `parallel.attention_backend`.

    Returns:
        The output [S, heads, d], and its log-sum-exp [S, heads] without a graph.

    Raises:
        CommunicationError: a rank of the ring has died or did not answer in time.
    """
    lens = tuple(local_seqlens)
    assert sum(lens) == query.shape[0], f"documents of {sum(lens)} tokens, query of {query.shape[0]}"
    if kernel is None:
        kernel = choose_kernel(query, key.shape[1], backend, merges=group is not None and group.size() > 1)
    return _RingAttention.apply(query, key, value, lens, group, scale, kernel, kept)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lens: tuple[int, ...],
        group: dist.ProcessGroup | None,
        scale: float,
        kernel: BlockKernel,
        kept: AttentionResult | None,
    ) -> AttentionResult:
        ring = Ring(group) if group is not None and group.size() > 1 else None
        # Sent from and kept; and a view of a joint projection would keep all of it.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if kept is not None:
            output, lse = (tensor.detach() for tensor in kept)
        elif ring is None:
            output, lse = kernel.forward(query, key, value, AttentionBlock(lens, lens, True, scale))
        else:
            output, lse = _forward(ring, kernel, query, key, value, lens, scale)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.settings = (lens, ring, scale, kernel)
        return output, lse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        query, key, value, output, lse = ctx.saved_tensors
        lens, ring, scale, kernel = ctx.settings
        if ring is None:
            found = kernel.backward(gradient, query, key, value, output, lse, AttentionBlock(lens, lens, True, scale))
        else:
            found = _backward(ring, kernel, gradient, query, key, value, output, lse, lens, scale)
        return (*found, None, None, None, None, None)


def _forward(
    ring: Ring, kernel: BlockKernel, query: Tensor, key: Tensor, value: Tensor, lens: tuple[int, ...], scale: float
) -> AttentionResult:
    chunks = Chunks.of(lens, query.device)
    arriving = _send_block(ring, chunks, [key, value], 0)
    output, lse = kernel.forward(query, key, value, AttentionBlock(lens, lens, True, scale))
    output = output.to(lse.dtype)  # blocks of half precision are summed in float32
    late_query = chunks.second(query)
    for step in range(1, ring.size):
        block = arriving.wait()
        if step + 1 < ring.size:
            arriving = _send_block(ring, chunks, block, step)
        held_key, held_value = block
        if _above(ring, step):  # the keys are all later than our first chunk, and earlier than our second
            seen = kernel.forward(late_query, held_key, held_value, AttentionBlock(chunks.lens, lens, False, scale))
            late_output, late_lse = chunks.second(output), chunks.second(lse)
            merge(late_output, late_lse, *seen)
            chunks.put_second(output, late_output)
            chunks.put_second(lse, late_lse)
        else:
            seen = kernel.forward(query, held_key, held_value, AttentionBlock(lens, chunks.lens, False, scale))
            merge(output, lse, *seen)
    return output.to(query.dtype), lse


def _backward(
    ring: Ring,
    kernel: BlockKernel,
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    lens: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = Chunks.of(lens, query.device)
    arriving = _send_block(ring, chunks, [key, value], 0)
    own = kernel.backward(gradient, query, key, value, output, lse, AttentionBlock(lens, lens, True, scale))
    query_gradient, *own_gradients = (tensor.to(lse.dtype) for tensor in own)
    late = [chunks.second(tensor) for tensor in (gradient, query, output, lse)] if _above(ring, 1) else []
    followers: Handover | None = None
    for step in range(1, ring.size):
        block = arriving.wait()
        if step + 1 < ring.size:
            arriving = _send_block(ring, chunks, block, step)
        held_key, held_value = block
        if _above(ring, step):
            late_gradient, late_query, late_output, late_lse = late
            block_shape = AttentionBlock(chunks.lens, lens, False, scale)
            found = kernel.backward(late_gradient, late_query, held_key, held_value, late_output, late_lse, block_shape)
            chunks.add_second(query_gradient, found[0])
        else:
            block_shape = AttentionBlock(lens, chunks.lens, False, scale)
            found = kernel.backward(gradient, query, held_key, held_value, output, lse, block_shape)
            query_gradient += found[0]
        gradients = [tensor.to(lse.dtype).contiguous() for tensor in found[1:]]
        if followers is not None:
            gradients = _added(chunks, followers.wait(), gradients)
        followers = _send_gradients(ring, chunks, gradients, step)
    assert followers is not None
    key_gradient, value_gradient = _added(chunks, own_gradients, followers.wait())
    return query_gradient.to(query.dtype), key_gradient.to(key.dtype), value_gradient.to(value.dtype)


def merge(output: Tensor, lse: Tensor, block_output: Tensor, block_lse: Tensor) -> None:
    """Add a block to what the same queries have seen before, in place.

    The block's share of the joint softmax is sigmoid(block_lse - lse): no exponential of anything but a difference is
    formed, so nothing overflows however large the scores are.

    Args:
        output: [queries, heads, d], float32 or wider.
        lse: [queries, heads].
        block_output: the block's, in any floating type.
        block_lse: the block's.
    """
    share = torch.sigmoid(block_lse - lse).unsqueeze(-1)
    output.lerp_(block_output.to(output.dtype), share)
    torch.logaddexp(lse, block_lse, out=lse)


class Chunks:
    """The two chunks of every document among a rank's tokens: views of one document, copies of several."""

    def __init__(self, lens: tuple[int, ...], device: torch.device) -> None:
        """Note where the chunks are."""
        assert all(length % 2 == 0 for length in lens), f"documents of {lens} tokens cannot be cut into two chunks"
        self.lens = tuple(length // 2 for length in lens)
        """Tokens of a chunk of each document."""
        self.rows = sum(self.lens)
        self._first: Tensor | None = None
        if len(lens) > 1:
            starts = torch.tensor([0, *lens[:-1]]).cumsum(0)
            halves = torch.tensor(self.lens)
            within = torch.arange(self.rows) - (halves.cumsum(0) - halves).repeat_interleave(halves)
            self._first = to_device(starts.repeat_interleave(halves) + within, device)
            self._second = to_device((starts + halves).repeat_interleave(halves) + within, device)

    @staticmethod
    @lru_cache(maxsize=64)
    def of(lens: tuple[int, ...], device: torch.device) -> Chunks:
        """Return the chunks of these documents; kept, since every layer asks for the same."""
        return Chunks(lens, device)

    def first(self, tensor: Tensor) -> Tensor:
        """First chunk of every document."""
        return tensor[: self.rows] if self._first is None else tensor.index_select(0, self._first)

    def second(self, tensor: Tensor) -> Tensor:
        """Second chunk of every document."""
        return tensor[self.rows :] if self._first is None else tensor.index_select(0, self._second)

    def put_second(self, tensor: Tensor, values: Tensor) -> None:
        """Write values that `second` may have copied back into their places."""
        if self._first is not None:
            tensor.index_copy_(0, self._second, values)

    def add_first(self, tensor: Tensor, values: Tensor) -> None:
        """Add to the first chunk of every document."""
        if self._first is None:
            tensor[: self.rows] += values
        else:
            tensor.index_add_(0, self._first, values)

    def add_second(self, tensor: Tensor, values: Tensor) -> None:
        """Add to the second chunk of every document."""
        if self._first is None:
            tensor[self.rows :] += values
        else:
            tensor.index_add_(0, self._second, values.to(tensor.dtype))


def _above(ring: Ring, step: int) -> bool:
    """Tell whether the block held at a step is that of a higher rank."""
    return ring.rank + step < ring.size


def _send_block(ring: Ring, chunks: Chunks, block: Sequence[Tensor], step: int) -> Handover:
    """Hand on the keys and values held at a step: only their first chunks to a rank above their owner."""
    owner, receiver = (ring.rank + step) % ring.size, (ring.rank - 1) % ring.size
    if receiver > owner and block[0].shape[0] > chunks.rows:
        block = [chunks.first(tensor) for tensor in block]
    rows = chunks.rows if not _above(ring, step + 1) else 2 * chunks.rows
    return ring.pass_on(block, rows, step + 1)


def _send_gradients(ring: Ring, chunks: Chunks, gradients: Sequence[Tensor], step: int) -> Handover:
    """Hand on the gradients of the block held at a step; those of rank 0's have first chunks alone."""
    rows = chunks.rows if (ring.rank + 1 + step) % ring.size == 0 else 2 * chunks.rows
    return ring.pass_on(gradients, rows, step)


def _added(chunks: Chunks, sums: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Sum two pairs of gradients, of which one may have first chunks alone."""
    for total, part in zip(sums, more, strict=True):
        if total.shape == part.shape:
            total += part
        else:
            chunks.add_first(total, part)
    return list(sums)
