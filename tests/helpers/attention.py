"""Attention of random packs by several processes, to be held against a dense softmax; also with planted faults.

The functions that take a `size` run inside a `WorkerPool`: its last `size` ranks form the group and work on their
parts of the same random pack, the others return None. So one pool serves all sizes, and ranks of the group are not
ranks of the world. Padding holds a constant instead of zero, so that padding which is seen shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.parallel.attention import ring as module
from megatron_v2pe.parallel.attention.all_to_all import all_to_all_attention
from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel, Gradients, Reference
from megatron_v2pe.parallel.attention.kernel_choice import choose_kernel
from megatron_v2pe.parallel.attention.mixed_kernels import Mixed, Rule
from megatron_v2pe.parallel.attention.ring import Chunks, ring_attention
from megatron_v2pe.parallel.attention.ring_exchange import Handover, Ring
from megatron_v2pe.parallel.zigzag import ZigzagLayout

WIDTH = 16
SCALE = WIDTH**-0.5
PADDING = 3.0
FAULTS = ("zigzag over the whole pack", "wrong half travels on", "gradients left behind", "blocks weigh the same")
"""Names of the faults that `attended` can plant."""


def random_inputs(
    shape: Sequence[int], heads: int, groups: int, dtype: torch.dtype, width: int = WIDTH, seed: int = 0
) -> list[Tensor]:
    """Query, key and value [*shape, heads or groups, width], and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads, groups, groups, heads)
    return [torch.randn(*shape, n, width, generator=generator, dtype=torch.float64).to(dtype) for n in counts]


def dense(query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
    """Softmax attention in float64, one document and one head after the other; autograd gives its gradients.

    Args:
        query: [queries, heads, d].
        key: [keys, groups, d]; head h reads group h // (heads // groups).
        value: as `key`.
        block: who sees whom.

    Returns:
        The output [queries, heads, d] and its log-sum-exp [queries, heads].
    """
    query, key, value = query.double(), key.double(), value.double()
    share = query.shape[1] // key.shape[1]
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    parts = query.split(block.query_lens), key.split(block.key_lens), value.split(block.key_lens)
    for q, k, v in zip(*parts, strict=True):
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(1) & block.causal
        of_head: list[tuple[Tensor, Tensor]] = []
        for head in range(q.shape[1]):
            scores = (q[:, head] @ k[:, head // share].T * block.scale).masked_fill(hidden, -math.inf)
            largest = scores.max(dim=1, keepdim=True).values.detach()
            weights = (scores - largest).exp()
            total = weights.sum(dim=1, keepdim=True)
            of_head.append((weights / total @ v[:, head // share], (largest + total.log()).squeeze(1)))
        output, lse = zip(*of_head, strict=True)
        outputs.append(torch.stack(output, dim=1))
        sums.append(torch.stack(lse, dim=1))
    return torch.cat(outputs), torch.cat(sums)


def dense_results(inputs: Sequence[Tensor], block: AttentionBlock) -> list[Tensor]:
    """Output, log-sum-exp, and gradients of query, key and value by `dense`, all float64."""
    query, key, value, outgoing = (tensor.detach().double() for tensor in inputs)
    leaves = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    output, lse = dense(query, key, value, block)
    return [output.detach(), lse.detach(), *torch.autograd.grad(output, leaves, outgoing)]


class CountingKernel:
    """A kernel that counts the blocks whose output it computes."""

    def __init__(self, kernel: BlockKernel) -> None:
        """Wrap a kernel."""
        self._kernel = kernel
        self.forwards = 0

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        self.forwards += 1
        return self._kernel.forward(query, key, value, block)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        return self._kernel.backward(gradient, query, key, value, output, lse, block)


class Cut:
    """Plain attention that takes tensors which go on behind the block's, as the dense kernel of `Mixed` does."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        queries, keys = sum(block.query_lens), sum(block.key_lens)
        return Reference().forward(query[:queries], key[:keys], value[:keys], block)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        queries, keys = sum(block.query_lens), sum(block.key_lens)
        gradient, query, output = (tensor[:queries] for tensor in (gradient, query, output))
        return Reference().backward(gradient, query, key[:keys], value[:keys], output, lse, block)


def divided() -> Mixed:
    """Return a kernel that attends documents from 20 tokens on densely and the others together, on the CPU."""
    return Mixed(Cut(), Reference(), Rule(causal=2.0 * 20 * 20 * 4 * WIDTH, block=4.0 * 20 * 20 * 4 * WIDTH))


def attended(
    size: int,
    lengths: tuple[int, ...],
    heads: int,
    groups: int,
    dtype: torch.dtype,
    method: str = "ring",
    reference: bool = False,
    division: bool = False,
    mixed: bool = False,
    fault: str | None = None,
) -> list[Tensor] | None:
    """Attend over this rank's share of a random pack.

    Args:
        size: ranks of the group.
        lengths: tokens of each document.
        heads: query heads.
        groups: key-value heads.
        dtype: of the tensors.
        method: `ring` or `all_to_all`.
        reference: compute blocks by the reference kernel (ring only).
        division: compute blocks by `divided` (ring only).
        mixed: query, key and value are views of one tensor.
        fault: one of `FAULTS`.

    Returns:
        Shares of the output, (of the ring) its log-sum-exp, and the gradients of query, key and value.
    """
    group = _last_ranks(size)
    if group is None:
        return None
    layout = ZigzagLayout(lengths, size)
    held = ZigzagLayout((sum(lengths),), size) if fault == "zigzag over the whole pack" else layout
    *states, outgoing = _shares(held, group, heads, groups, dtype)
    if mixed:
        states = torch.cat(states, dim=1).split([heads, groups, groups], dim=1)
    query, key, value = leaves = _leaves(states)
    with _planted(fault):
        if method == "ring":
            kernel = divided() if division else Reference() if reference else None
            found = list(ring_attention(query, key, value, layout.local_seqlens, group, SCALE, kernel=kernel))
        else:
            found = [_all_to_all(query, key, value, layout, group)[0]]
        gradients = torch.autograd.grad(found[0], leaves, outgoing)
    return [tensor.detach() for tensor in (*found, *gradients)]


def attended_twice(
    size: int, lengths: tuple[int, ...], heads: int, groups: int, method: str
) -> list[dict[str, Any]] | None:
    """Attend over a random float64 pack, and once more with the first result kept.

    Returns:
        For both, `results` (output and gradients), and what was done until the output was there: `forwards`, blocks
        computed, and `bytes` passed on.
    """
    group = _last_ranks(size)
    if group is None:
        return None
    layout = ZigzagLayout(lengths, size)
    *states, outgoing = _shares(layout, group, heads, groups, torch.float64)
    query, key, value = leaves = _leaves(states)
    kept = None
    reports: list[dict[str, Any]] = []
    for _ in range(2):
        kernel = CountingKernel(choose_kernel(query))
        chosen = patch.object(module, "choose_kernel", lambda *_, kernel=kernel, **__: kernel)
        with _bytes_passed_on() as counts, chosen:
            if method == "ring":
                kept = ring_attention(query, key, value, layout.local_seqlens, group, SCALE, kept=kept)
                output = kept[0]
            else:
                output, kept = _all_to_all(query, key, value, layout, group, kept)
        report: dict[str, Any] = {"forwards": kernel.forwards, "bytes": sum(counts)}
        gradients = torch.autograd.grad(output, leaves, outgoing)
        reports.append({**report, "results": [output.detach(), *gradients]})
        kept = tuple(tensor.detach() for tensor in kept)
    return reports


def saved_bytes(
    size: int, lengths: tuple[int, ...], heads: int, groups: int, dtype: torch.dtype, method: str
) -> tuple[list[int], int] | None:
    """Attend as a layer does: query and key are new tensors (rotated), the value is a view of a mixed one.

    Returns:
        Bytes of each tensor that autograd keeps, sorted; and of the storages they hold alive.
    """
    group = _last_ranks(size)
    if group is None:
        return None
    layout = ZigzagLayout(lengths, size)
    *states, _ = _shares(layout, group, heads, groups, dtype)
    mixed = torch.cat(states, dim=1).split([heads, groups, groups], dim=1)
    query, key, value = _leaves([*states[:2], mixed[2]])
    saved: list[int] = []
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved.append(tensor.nbytes)
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if method == "ring":
            output, _ = ring_attention(query, key, value, layout.local_seqlens, group, SCALE)
        else:
            output, _ = _all_to_all(query, key, value, layout, group)
    assert output.requires_grad
    return sorted(saved), sum(storages.values())


def bytes_on_the_wire(
    size: int, lengths: tuple[int, ...], heads: int, groups: int, dtype: torch.dtype
) -> tuple[int, int] | None:
    """Return the bytes this rank passes on in ring attention: in the forward pass, and in the backward pass."""
    group = _last_ranks(size)
    if group is None:
        return None
    layout = ZigzagLayout(lengths, size)
    *states, outgoing = _shares(layout, group, heads, groups, dtype)
    query, key, value = leaves = _leaves(states)
    with _bytes_passed_on() as forward:
        output, _ = ring_attention(query, key, value, layout.local_seqlens, group, SCALE)
    with _bytes_passed_on() as backward:
        torch.autograd.grad(output, leaves, outgoing)
    return sum(forward), sum(backward)


@cache
def _last_ranks(size: int) -> dist.ProcessGroup | None:
    """Group of the world's last ranks, None on the others; made once, by all ranks together."""
    world = dist.get_world_size()
    group = dist.new_group(list(range(world - size, world)))
    return group if isinstance(group, dist.ProcessGroup) else None


def _shares(
    layout: ZigzagLayout, group: dist.ProcessGroup, heads: int, groups: int, dtype: torch.dtype
) -> list[Tensor]:
    """Shares of `random_inputs`; the gradient of padding is zero, since no loss reads it."""
    whole = random_inputs((sum(layout.lengths),), heads, groups, dtype)
    fills = (PADDING, PADDING, PADDING, 0.0)
    return [layout.shard(tensor, group.rank(), fill) for tensor, fill in zip(whole, fills, strict=True)]


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (tensor.requires_grad_() for tensor in tensors)
    return query, key, value


def _all_to_all(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: ZigzagLayout,
    group: dist.ProcessGroup,
    kept: module.AttentionResult | None = None,
) -> tuple[Tensor, module.AttentionResult]:
    order = layout.documents_in_order()
    return all_to_all_attention(query, key, value, layout.seqlens, order, group, SCALE, kept)


@contextmanager
def _bytes_passed_on() -> Iterator[list[int]]:
    counts: list[int] = []
    original = Ring.pass_on

    def counted(self: Ring, tensors: Sequence[Tensor], rows: int, step: int) -> Handover:
        counts.extend(tensor.nbytes for tensor in tensors)
        return original(self, tensors, rows, step)

    with patch.object(Ring, "pass_on", counted):
        yield counts


@contextmanager
def _planted(fault: str | None) -> Iterator[None]:
    """Break ring attention for as long as the context is open."""

    def equal_shares(output: Tensor, lse: Tensor, block_output: Tensor, block_lse: Tensor) -> None:
        output.lerp_(block_output.to(output.dtype), 0.5)
        torch.logaddexp(lse, block_lse, out=lse)

    if fault == "wrong half travels on":
        change = patch.object(Chunks, "first", Chunks.second)
    elif fault == "gradients left behind":
        change = patch.object(module, "_added", lambda chunks, sums, more: list(sums))
    elif fault == "blocks weigh the same":
        change = patch.object(module, "merge", equal_shares)
    else:
        assert fault in (None, FAULTS[0]), fault
        yield
        return
    with change:
        yield
