"""Plain softmax attention in chunks of queries: any type on any device, linear in memory.

It is what float32 gets on CUDA, where the fast kernels take half precision only, and what is left where every other
kernel refuses. The arithmetic is that of `Reference`, in float32 or wider; scores of one chunk at a time exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_v2pe.parallel.attention.block import AttentionBlock, Batches, Gradients

CHUNK_BYTES = 1 << 28
"""Scores of a chunk; some three times as much is held at once in backward."""


class Chunked:
    """Softmax attention written out, a chunk of queries at a time."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Take the bytes that scores may fill."""
        self.chunk_bytes = chunk_bytes

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        batches = Batches(block)
        outputs: list[Tensor] = []
        sums: list[Tensor] = []
        for q, k, v in zip(batches.queries(query), batches.keys(key), batches.keys(value), strict=True):
            k, v = _wide(k), _wide(v)
            output, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=k.dtype)
            for chunk in self._chunks(q, k, block.causal):
                scores = chunk.scores(q, k, block.scale)
                total = scores.logsumexp(-1)
                weights = scores.sub_(total.unsqueeze(-1)).exp_()
                chunk.rows(output).copy_(chunk.split(weights @ v[:, :, : chunk.keys]))
                chunk.rows(lse).copy_(chunk.split(total))
            outputs.append(output)
            sums.append(lse)
        return batches.tokens(outputs), batches.tokens(sums)

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
        batches = Batches(block)
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
        inputs = batches.queries(query), batches.keys(key), batches.keys(value)
        results = batches.queries(gradient), batches.queries(output), batches.queries(lse)
        for q, k, v, outgoing, final, total in zip(*inputs, *results, strict=True):
            k, v = _wide(k), _wide(v)
            of_query, of_key, of_value = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for chunk in self._chunks(q, k, block.causal):
                seen = slice(0, chunk.keys)
                mine, change = chunk.joined(_wide(chunk.rows(q))), chunk.joined(_wide(chunk.rows(outgoing)))
                delta = (change * chunk.joined(_wide(chunk.rows(final)))).sum(-1, keepdim=True)
                weights = chunk.scores(q, k, block.scale)
                weights.sub_(chunk.joined(chunk.rows(total)).unsqueeze(-1)).exp_()
                of_value[:, :, seen] += weights.transpose(-1, -2) @ change
                inner = (change @ v[:, :, seen].transpose(-1, -2)).sub_(delta).mul_(weights).mul_(block.scale)
                chunk.rows(of_query).copy_(chunk.split(inner @ k[:, :, seen]))
                of_key[:, :, seen] += inner.transpose(-1, -2) @ mine
            tensors = of_query, of_key.to(key.dtype), of_value.to(value.dtype)
            for gradients, tensor in zip(found, tensors, strict=True):
                gradients.append(tensor)
        query_gradient, key_gradient, value_gradient = map(batches.tokens, found)
        return query_gradient, key_gradient, value_gradient

    def _chunks(self, query: Tensor, key: Tensor, causal: bool) -> Iterator[_Chunk]:
        documents, heads, queries, _ = query.shape
        keys = key.shape[2]
        rows = max(1, self.chunk_bytes // (documents * heads * keys * key.itemsize))
        for start in range(0, queries, rows):
            stop = min(start + rows, queries)
            yield _Chunk(start, stop, stop if causal else keys, key.shape[1], causal)


class _Chunk:
    """Queries of a chunk, and the keys they may see: all up to `keys`, in a causal block none later than themselves.

    The query heads of a group are taken as further queries of its keys, so that no key is repeated.
    """

    def __init__(self, start: int, stop: int, keys: int, groups: int, causal: bool) -> None:
        self.start, self.stop, self.keys, self.groups, self.causal = start, stop, keys, groups, causal

    def rows(self, tensor: Tensor) -> Tensor:
        """Return this chunk's part of [documents, heads, queries, ...]."""
        return tensor[:, :, self.start : self.stop]

    def joined(self, rows: Tensor) -> Tensor:
        """Return [documents, groups, heads of a group x queries, ...] of [documents, heads, queries, ...]."""
        return rows.unflatten(1, (self.groups, -1)).flatten(2, 3)

    def split(self, joined: Tensor) -> Tensor:
        """Return what `joined` was given: the inverse of it."""
        return joined.unflatten(2, (-1, self.stop - self.start)).flatten(1, 2)

    def scores(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """Return [documents, groups, heads of a group x queries, keys], -inf where a key is not to be seen."""
        scores = (self.joined(_wide(self.rows(query))) @ key[:, :, : self.keys].transpose(-1, -2)).mul_(scale)
        if self.causal:
            rows = self.stop - self.start
            later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu_(1)
            scores.unflatten(2, (-1, rows))[..., self.start :].masked_fill_(later, -math.inf)
        return scores


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
