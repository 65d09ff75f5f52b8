"""The largest attention logit of a layer, which the fast kernels do not give: computed block by block, on request.

A logit is the product of a query and a key that it sees, times the scale of the softmax. Each block of products lies in
memory once, in float32; of a pack the work is that of a forward pass of attention without its values. Context-parallel
ranks hand their keys round; each compares its own queries with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.parallel.packed_sequence import PackedSequence
from megatron_v2pe.parallel.zigzag import ZigzagLayout

LogitWatch = Callable[[int, Tensor, Tensor, PackedSequence, float, "dist.ProcessGroup | None"], None]
"""Takes a layer's number, its queries and keys as they are attended, the pack, the scale and the group of ranks."""
_BLOCK = 1 << 26
"""Products held at a time."""


@torch.no_grad()
def largest_logit(
    query: Tensor, key: Tensor, layout: ZigzagLayout, scale: float, group: dist.ProcessGroup | None, block: int = _BLOCK
) -> Tensor:
    """Return the largest logit of this rank's queries and heads; every rank of the group calls this.

    Args:
        query: [S, heads, d], this context-parallel rank's tokens in zigzag order, rotated.
        key: [S, groups, d], rotated.
        layout: documents of the pack; a query sees the keys of its document up to its own.
        scale: factor on the products.
        group: the context-parallel group; None where this rank holds whole documents.
        block: products held at a time.

    Returns:
        A scalar in float32 or wider on the device; minus infinity where all tokens are padding.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    size, rank = layout.context_parallel_size, 0 if group is None else group.rank()
    found = [torch.full((), -torch.inf, dtype=wide, device=query.device)]
    for other in range(size):
        keys = key if other == rank else torch.empty_like(key)
        if group is not None:
            keys = keys.contiguous()
            dist.broadcast(keys, src=dist.get_global_rank(group, other), group=group)
        for queries, seen, ahead in _pairs(layout, rank, other):
            found += _of_pair(query[queries].to(wide), keys[seen].to(wide), ahead, block)
    return torch.stack(found).amax() * scale


def _pairs(layout: ZigzagLayout, rank: int, other: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield runs of a rank's queries and of another's keys that see each other, of the same document.

    Query i of its run sees the keys j <= i + ahead, the third entry. Queries of padding are left out; keys of padding
    stand behind all queries that are not.
    """
    count = 1 if layout.context_parallel_size == 1 else 2
    begins = (0, *accumulate(layout.local_seqlens))
    for begin, local, length in zip(begins, layout.local_seqlens, layout.lengths, strict=False):
        run = local // count
        for first, place in _runs(layout, rank, run):
            real = min(max(length - place, 0), run)
            for second, other_place in _runs(layout, other, run):
                ahead = place - other_place
                if real and real - 1 + ahead >= 0:
                    queries = slice(begin + first, begin + first + real)
                    yield queries, slice(begin + second, begin + second + run), ahead


def _runs(layout: ZigzagLayout, rank: int, run: int) -> Iterator[tuple[int, int]]:
    """Yield where a rank's runs of a document begin: among its own tokens of it, and in the padded document."""
    size = layout.context_parallel_size
    chunks = (0,) if size == 1 else (rank, 2 * size - 1 - rank)
    for number, chunk in enumerate(chunks):
        yield number * run, chunk * run


def _of_pair(query: Tensor, key: Tensor, ahead: int, block: int) -> Iterator[Tensor]:
    """Yield the largest products of blocks of queries [m, heads, d] with the keys [n, groups, d] that they see."""
    groups, width = key.shape[1], query.shape[1] // key.shape[1]
    rows = max(1, block // (query.shape[1] * key.shape[0]))
    for first in range(0, query.shape[0], rows):
        part = query[first : first + rows]
        seen = min(key.shape[0], first + part.shape[0] + ahead)
        if seen <= 0:
            continue
        left = part.unflatten(1, (groups, width)).permute(1, 2, 0, 3).flatten(1, 2)  # [groups, width * rows, d]
        products = torch.bmm(left, key[:seen].permute(1, 2, 0)).unflatten(1, (width, part.shape[0]))
        if first + ahead + 1 < seen:
            last_seen = torch.arange(part.shape[0], device=key.device) + (first + ahead)
            hidden = torch.arange(seen, device=key.device) > last_seen.unsqueeze(1)
            products = products.masked_fill(hidden, -torch.inf)
        yield products.amax()
