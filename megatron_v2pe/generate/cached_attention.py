"""Attention of new tokens over a key-value cache that may be spread over a context-parallel group.

Prefill: the pieces of a step attend causally among themselves, over the ring, and store their keys and values; where a
piece continues a prompt, its queries also visit every rank's cache of what came before. Decode: the one new query of
each sequence meets the cache of every rank. What ranks find is merged by log-sum-exp in float32 or wider, by the ring's
own `merge`, so that no rank ever needs more than its share of the keys. A rank that holds nothing of a sequence takes
part with a log-sum-exp so low that it weighs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.generate.arena import ArenaCache
from megatron_v2pe.generate.kv_cache import KVCache, Slab
from megatron_v2pe.generate.prefill_plan import LocalPiece
from megatron_v2pe.kernels.decode_attention import FLOOR, decode_attention
from megatron_v2pe.parallel.attention.block import AttentionBlock
from megatron_v2pe.parallel.attention.kernel_choice import choose_kernel
from megatron_v2pe.parallel.attention.ring import merge, ring_attention


@dataclass(frozen=True)
class _Target:
    """What a decode step does with one slab, the same for every layer."""

    slab: Slab
    rows: Tensor
    """int64 [m]: sequences of the batch whose new token is kept here."""
    places: Tensor
    """int64 [m]: where, in the slab's [sequences x room] places."""
    place: int | None
    """The one place all of the slab's sequences use, each in its own room; None where they differ."""
    used: int
    """Places any of its sequences uses."""
    mask: Tensor | None
    """[sequences, 1, 1, used], -inf beyond a sequence's own length; None where all are equally long."""
    empty: Tensor | None
    """bool [sequences]: those of which nothing is held here; None where there are none."""
    runs: tuple[Tensor, Tensor] | None
    """On CUDA, in place of masks: int64 [sequences] each, first place and length of every sequence."""


class CachedAttention:
    """Attention over one batch's cache."""

    def __init__(self, cache: KVCache | ArenaCache, group: dist.ProcessGroup, scale: float) -> None:
        """Remember the cache.

        Args:
            cache: this rank's.
            group: the context-parallel group.
            scale: factor on the scores, usually `d ** -0.5`.
        """
        self.cache, self.group, self.scale = cache, group, scale
        self._targets: list[_Target] = []

    def prefill(self, layer: int, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[LocalPiece]) -> Tensor:
        """Attend with the pieces of a step, store their keys and values.

        Args:
            layer: number of the layer on this rank.
            query: rotated, [S, heads, d]; the pieces one behind the other, zigzag within each.
            key: rotated, [S, groups, d].
            value: [S, groups, d].
            pieces: what the S tokens are.

        Returns:
            [S, heads, d].
        """
        lens = tuple(piece.tokens for piece in pieces)
        if self.group.size() == 1:
            block = AttentionBlock(lens, lens, True, self.scale)
            states = (query, key, value)
            if not query.is_cuda:  # the CPU's kernel streams over keys a few percent faster where a head's lie together
                states = (_heads_together(query), _heads_together(key), _heads_together(value))
            output, lse = choose_kernel(query, key.shape[1]).forward(*states, block)
        else:
            output, lse = ring_attention(query, key, value, lens, self.group, self.scale)
        lengths = self.cache.lengths
        for piece, rows in _rows(pieces):
            if piece.continues:
                wide, total = output[rows].to(lse.dtype), lse[rows]
                earlier = self.cache.view(layer, piece.sequence, lengths[piece.sequence])
                self._add_earlier(wide, total, query[rows], *earlier)
                output[rows] = wide.to(output.dtype)
        self.store(layer, key, value, pieces)
        return output

    def store(self, layer: int, key: Tensor, value: Tensor, pieces: Sequence[LocalPiece]) -> None:
        """Store keys and values of the pieces of a step; arguments are those of `prefill`."""
        lengths = self.cache.lengths
        for piece, rows in _rows(pieces):
            whole = len(piece.kept) == piece.tokens
            new = (key[rows], value[rows]) if whole else (key[rows][piece.kept], value[rows][piece.kept])
            self.cache.write(layer, piece.sequence, lengths[piece.sequence], *new)

    def _add_earlier(self, output: Tensor, lse: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> None:
        """Merge attention over every rank's earlier tokens of a sequence into `output`, in place.

        Queries travel, not keys: a step's queries are few beside what a long prompt has cached.
        """
        size = self.group.size()
        if size == 1:
            merge(output, lse, *self._whole_block(query, keys, values))
            return
        everyone = query.new_empty((size * query.shape[0], *query.shape[1:]))
        dist.all_gather(list(everyone.chunk(size)), query.contiguous(), group=self.group)
        leaving = _joined(*self._whole_block(everyone, keys, values))
        arrived = torch.empty_like(leaving)
        dist.all_to_all_single(arrived, leaving, group=self.group)
        for part in arrived.chunk(size):
            merge(output, lse, *_parted(part))

    def _whole_block(self, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attend with queries [q, heads, d] over all keys [k, groups, d]; k may be 0."""
        if keys.shape[0] == 0:
            return nothing(query)
        block = AttentionBlock((query.shape[0],), (keys.shape[0],), False, self.scale)
        return choose_kernel(query, keys.shape[1]).forward(query, keys, values, block)

    def begin_decode(self, mine: Sequence[bool]) -> None:
        """Prepare a decode step for all layers.

        Args:
            mine: per sequence of the batch, whether this rank keeps the new token; all False if it is cached.
        """
        assert isinstance(self.cache, KVCache)
        before = self.cache.lengths
        self.cache.extend([int(kept) for kept in mine])
        self._targets = [_target(slab, before, mine) for slab in self.cache.slabs]

    def decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with one new token of each sequence.

        Args:
            layer: number of the layer on this rank.
            query: rotated, [sequences, groups, heads per group, d], the same on every context-parallel rank.
            key: rotated, [sequences, groups, d].
            value: [sequences, groups, d].

        Returns:
            [sequences, groups, heads per group, d].
        """
        parts: list[tuple[Tensor, Tensor]] = []
        for target in self._targets:
            slab = target.slab
            keys, values = slab.layers[layer]
            if target.place is not None:
                keys[:, target.place] = key[slab.first : slab.stop]
                values[:, target.place] = value[slab.first : slab.stop]
            elif len(target.rows):
                keys.flatten(0, 1).index_copy_(0, target.places, key[target.rows])
                values.flatten(0, 1).index_copy_(0, target.places, value[target.rows])
            parts.append(self._attend(target, query[slab.first : slab.stop], keys, values))
        output, lse = parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))
        if self.group.size() == 1:
            return output
        mine = _joined(output, lse)
        everyone = mine.new_empty((self.group.size() * mine.shape[0], *mine.shape[1:]))
        dist.all_gather(list(everyone.chunk(self.group.size())), mine, group=self.group)
        first, *others = everyone.chunk(self.group.size())
        wide, total = _parted(first)
        for part in others:
            merge(wide, total, *_parted(part))
        return wide.to(query.dtype)

    def _attend(self, target: _Target, query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attend with a slab's queries to what is held here."""
        if target.used == 0:
            return nothing(query)
        if target.runs is not None:
            return decode_attention(query, keys.flatten(0, 1), values.flatten(0, 1), *target.runs, self.scale)
        output, lse = side_by_side(query, keys, values, target.used, target.mask, self.scale)
        if target.empty is not None:
            zeros, floor = nothing(query)
            output = torch.where(target.empty.view(-1, 1, 1, 1), zeros, output)
            lse = torch.where(target.empty.view(-1, 1, 1), floor, lse)
        return output, lse


class ArenaAttention(CachedAttention):
    """The same over the runs of an arena, on one process: what a captured step does, called step by step."""

    def begin_decode(self, mine: Sequence[bool]) -> None:
        """See `CachedAttention`."""
        cache = self.cache
        assert isinstance(cache, ArenaCache) and self.group.size() == 1
        before = cache.lengths
        cache.extend([int(kept) for kept in mine])
        numbers = torch.tensor([cache.starts, before, cache.lengths], device=cache.arena.layers[0][0].device)
        self._starts, self._lengths = numbers[0], numbers[2]
        rows = torch.tensor([row for row, kept in enumerate(mine) if kept], device=numbers.device)
        self._kept = rows if any(mine) else None
        self._places = None if self._kept is None else (numbers[0] + numbers[1])[self._kept]

    def decode(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `CachedAttention`."""
        assert isinstance(self.cache, ArenaCache)
        keys, values = self.cache.arena.layers[layer]
        if self._kept is not None and self._places is not None:
            keys.index_copy_(0, self._places, key[self._kept])
            values.index_copy_(0, self._places, value[self._kept])
        return decode_attention(query, keys, values, self._starts, self._lengths, self.scale)[0]


def _rows(pieces: Sequence[LocalPiece]) -> Iterator[tuple[LocalPiece, slice]]:
    """Yield pieces with their rows among the tokens of a step."""
    start = 0
    for piece in pieces:
        yield piece, slice(start, start + piece.tokens)
        start += piece.tokens


def _target(slab: Slab, before: Sequence[int], mine: Sequence[bool]) -> _Target:
    device = slab.layers[0][0].device
    rows = [row for row in range(slab.first, slab.stop) if mine[row]]
    places = [(row - slab.first) * slab.room + before[row] for row in rows]
    own = set(before[slab.first : slab.stop])
    together = own.pop() if len(rows) == slab.stop - slab.first and len(own) == 1 else None
    used = max(slab.lengths)
    mask = empty = runs = None
    if device.type == "cuda":
        starts = [row * slab.room for row in range(len(slab.lengths))]
        numbers = torch.tensor([starts, slab.lengths], device=device)
        runs = numbers[0], numbers[1]
    elif min(slab.lengths) < used:
        lengths = torch.tensor(slab.lengths, device=device)
        beyond = torch.arange(used, device=device) >= lengths.clamp(min=1).unsqueeze(1)
        dtype = slab.layers[0][0].dtype
        mask = torch.zeros(beyond.shape, dtype=dtype, device=device).masked_fill_(beyond, -torch.inf)[:, None, None]
        empty = lengths == 0 if min(slab.lengths) == 0 else None
    index = torch.tensor([rows, places], device=device)
    return _Target(slab, index[0], index[1], together, used, mask, empty, runs)


def _heads_together(states: Tensor) -> Tensor:
    """Return the same [tokens, heads, d], in memory one head behind the other."""
    return states.transpose(0, 1).contiguous().transpose(0, 1)


def _joined(output: Tensor, lse: Tensor) -> Tensor:
    """Return output and log-sum-exp as one tensor [..., d + 1] to send."""
    return torch.cat([output.to(lse.dtype), lse.unsqueeze(-1)], dim=-1)


def _parted(joined: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `_joined` has put together: output and log-sum-exp, contiguous."""
    return joined[..., :-1].contiguous(), joined[..., -1].contiguous()


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
    """Return output and log-sum-exp of attention over no keys, for queries [..., d]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_zeros(query.shape), torch.full(query.shape[:-1], FLOOR, dtype=wide, device=query.device)
