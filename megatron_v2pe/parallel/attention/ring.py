"""Exact causal attention over packed documents whose tokens are spread over a ring of ranks, or held by one.

Queries stay where they are; keys and values travel (Liu et al., arXiv 2310.01889), the next block in flight while the
current one is computed. Under the zigzag order (`zigzag.py`) every block but a rank's own is seen whole or not at all.
Three ranks, a document of six chunks; at step s rank r holds the keys of rank r + s:

    rank (its chunks)   step 0: its own, causal   step 1                      step 2
    0    (0 5)          0 5 see 0 5               5   sees 1 4, of rank 1     5   sees 2 3, of rank 2
    1    (1 4)          1 4 see 1 4               4   sees 2 3, of rank 2     1 4 see  0,   of rank 0
    2    (2 3)          2 3 see 2 3               2 3 see  0,   of rank 0     2 3 see  1,   of rank 1

So a rank's second chunk of queries sees all keys of a higher rank, and all its queries see the first chunk of a lower
one: the same work on every rank at every step, and no block but a rank's own needs a mask. Blocks are merged by their
log-sum-exp in float32 or wider.

What a rank no longer needs does not travel: blocks move towards lower ranks, and once rank 0 has passed one on, all
that are left need only its first chunk; a quarter of the bytes is saved. Only the rank's own keys and values are kept
for the backward pass, in which blocks travel again with the gradients of their keys and values behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.device.transfer import to_device
from megatron_v2pe.parallel.attention.block import AttentionBlock, AttentionResult, BlockKernel, Gradients
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
    """Attend causally inside each document, never across documents.

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
            output, lse = _forward(_Steps(ring, lens, scale, query.device), kernel, query, key, value)
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
            queries = _Queries(gradient, query, output, lse)
            found = _backward(_Steps(ring, lens, scale, query.device), kernel, queries, key, value)
        return (*found, None, None, None, None, None)


def _forward(steps: _Steps, kernel: BlockKernel, query: Tensor, key: Tensor, value: Tensor) -> AttentionResult:
    chunks = steps.chunks
    arriving = steps.others(key, value)
    output, lse = kernel.forward(query, key, value, steps.own)
    output = output.to(lse.dtype)  # blocks of half precision are summed in float32
    late_query = chunks.second(query)
    for step, (held_key, held_value) in arriving:
        if steps.is_of_higher_rank(step):
            seen = kernel.forward(late_query, held_key, held_value, steps.of_higher)
            late_output, late_lse = chunks.second(output), chunks.second(lse)
            merge(late_output, late_lse, *seen)
            chunks.put_second(output, late_output)
            chunks.put_second(lse, late_lse)
        else:
            seen = kernel.forward(query, held_key, held_value, steps.of_lower)
            merge(output, lse, *seen)
    return output.to(query.dtype), lse


def _backward(steps: _Steps, kernel: BlockKernel, queries: _Queries, key: Tensor, value: Tensor) -> Gradients:
    """Return the gradients of query, key and value.

    The gradients of a block's keys and values follow it: what arrives from the rank above is summed over all ranks that
    have held the block before; this rank adds its own and sends the sum on. At the end they are back at their owner.
    """
    chunks, wide = steps.chunks, queries.lse.dtype
    arriving = steps.others(key, value)
    query_gradient, *own_gradients = (found.to(wide) for found in queries.backward(kernel, key, value, steps.own))
    late_queries = queries.second_chunks(chunks) if steps.is_of_higher_rank(1) else None
    following: Handover | None = None
    for step, (held_key, held_value) in arriving:
        if steps.is_of_higher_rank(step):
            assert late_queries is not None
            found = late_queries.backward(kernel, held_key, held_value, steps.of_higher)
            chunks.add_second(query_gradient, found[0])
        else:
            found = queries.backward(kernel, held_key, held_value, steps.of_lower)
            query_gradient += found[0]
        gradients = [gradient.to(wide).contiguous() for gradient in found[1:]]
        if following is not None:
            gradients = _added(chunks, following.wait(), gradients)
        following = steps.send_gradients(gradients, step)
    assert following is not None
    key_gradient, value_gradient = _added(chunks, own_gradients, following.wait())
    return query_gradient.to(queries.query.dtype), key_gradient.to(key.dtype), value_gradient.to(value.dtype)


@dataclass(frozen=True)
class _Queries:
    """What a kernel's backward pass is given of a rank's queries, all [S, heads, d] but `lse`."""

    gradient: Tensor
    """Gradient of the final output."""
    query: Tensor
    output: Tensor
    lse: Tensor
    """[S, heads], final as the output: merged over all blocks."""

    def backward(self, kernel: BlockKernel, key: Tensor, value: Tensor, block: AttentionBlock) -> Gradients:
        """Return the gradients of query, key and value of one block."""
        return kernel.backward(self.gradient, self.query, key, value, self.output, self.lse, block)

    def second_chunks(self, chunks: Chunks) -> _Queries:
        """Return the same of the second chunk of every document alone."""
        return _Queries(*(chunks.second(tensor) for tensor in (self.gradient, self.query, self.output, self.lse)))


class _Steps:
    """The steps of one rank: which blocks arrive, which queries see which of their keys, what is sent on."""

    def __init__(self, ring: Ring, lens: tuple[int, ...], scale: float, device: torch.device) -> None:
        """Describe the three kinds of blocks.

        Args:
            ring: this rank's place.
            lens: this rank's tokens of each document.
            scale: factor on the scores.
            device: where the tensors lie.
        """
        self.ring, self.chunks = ring, Chunks.of(lens, device)
        self.own = AttentionBlock(lens, lens, True, scale)
        self.of_higher = AttentionBlock(self.chunks.lens, lens, False, scale)
        """All keys of a higher rank: later than our first chunk, earlier than our second."""
        self.of_lower = AttentionBlock(lens, self.chunks.lens, False, scale)
        """First chunks of the keys of a lower rank: earlier than all our queries; its second chunks are later."""

    def is_of_higher_rank(self, step: int) -> bool:
        """Tell whether the block held at a step is that of a higher rank."""
        return self.ring.rank + step < self.ring.size

    def others(self, key: Tensor, value: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """Send this rank's keys and values off at once; return an iterator over the steps with what arrives in each.

        The block of the next step is in flight while the caller works on one.
        """
        return self._received(self._send([key, value], 0))

    def _received(self, arriving: Handover) -> Iterator[tuple[int, list[Tensor]]]:
        for step in range(1, self.ring.size):
            block = arriving.wait()
            if step + 1 < self.ring.size:
                arriving = self._send(block, step)
            yield step, block

    def _send(self, block: Sequence[Tensor], step: int) -> Handover:
        """Hand on the keys and values held at a step: only their first chunks to a rank above their owner."""
        ring, chunks = self.ring, self.chunks
        owner, receiver = (ring.rank + step) % ring.size, (ring.rank - 1) % ring.size
        if receiver > owner and block[0].shape[0] > chunks.rows:
            block = [chunks.first(tensor) for tensor in block]
        rows = 2 * chunks.rows if self.is_of_higher_rank(step + 1) else chunks.rows
        return ring.pass_on(block, rows, step + 1)

    def send_gradients(self, gradients: Sequence[Tensor], step: int) -> Handover:
        """Hand on the gradients of the block held at a step; those of rank 0's have first chunks alone."""
        ring, chunks = self.ring, self.chunks
        rows = chunks.rows if (ring.rank + 1 + step) % ring.size == 0 else 2 * chunks.rows
        return ring.pass_on(gradients, rows, step)


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
        """Return the first chunk of every document."""
        return tensor[: self.rows] if self._first is None else tensor.index_select(0, self._first)

    def second(self, tensor: Tensor) -> Tensor:
        """Return the second chunk of every document."""
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


def _added(chunks: Chunks, sums: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    """Sum two pairs of gradients, of which one may have first chunks alone."""
    for total, part in zip(sums, more, strict=True):
        if total.shape == part.shape:
            total += part
        else:
            chunks.add_first(total, part)
    return list(sums)
