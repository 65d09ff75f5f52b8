"""Keys and values in one long run of places per layer, kept from one batch to the next.

A step captured in a CUDA graph reads and writes at fixed addresses. So the memory stays where it is, and a sequence is
a run of it: where it starts and how much of it is used are numbers that change (`ArenaCache`). Sequences of any lengths
stand one behind the other, none padded by more than `CHUNK`; one that ends costs nothing to leave out. Only a batch
that needs more places than ever before moves the memory, and with it ends every captured step.

Example: prompts of 300 and 40 tokens take places 0 to 511 and 512 to 767.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from megatron_v2pe.generate.kv_cache import CHUNK, room_for

LEAST_BYTES = 1 << 29
"""Bytes taken from the start, so that a few more tokens do not move the memory."""
_PIECES = 8
"""Sizes to the doubling: at most an eighth is more than was asked for."""


class Arena:
    """Places for keys and values of all layers of this process."""

    def __init__(
        self, num_layers: int, groups: int, head_dim: int, dtype: torch.dtype, device: torch.device, least: int
    ) -> None:
        """Remember the shape; nothing is allocated.

        Args:
            num_layers: decoder layers.
            groups: key-value heads.
            head_dim: width of a head.
            dtype: of keys and values.
            device: where they are.
            least: bytes taken at least; see `LEAST_BYTES`.
        """
        self._shape, self._dtype, self._device = (num_layers, groups, head_dim), dtype, device
        self._least = least
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Per layer keys and values, [places, groups, d]."""
        self.moves = 0
        """Counts how often the memory has moved: what was captured before a move cannot be used any more."""

    @property
    def places(self) -> int:
        """Tokens there is room for."""
        return self.layers[0][0].shape[0] if self.layers else 0

    def bytes_of(self, places: int) -> int:
        """Return the bytes that so many places take."""
        num_layers, groups, head_dim = self._shape
        return 2 * num_layers * groups * head_dim * self._dtype.itemsize * places

    def bytes_to_take(self, places: int) -> int:
        """Return the bytes `make_room` would allocate, without what it gives back; 0 where there is room already."""
        return 0 if places <= self.places else self.bytes_of(self._size(places))

    def make_room(self, places: int) -> None:
        """Have room for so many places; what was in them may be lost."""
        if places > self.places:
            self.release()
            self._allocate(self._size(places))

    def release(self) -> None:
        """Give the memory back."""
        self.layers = []
        self.moves += 1

    def rearrange(self, places: int, sources: Tensor, targets: Tensor) -> None:
        """Move tokens to other places, with room for as many as needed; one layer at a time is held twice.

        Args:
            places: that are needed.
            sources: int64 [n]: where tokens are.
            targets: int64 [n]: where they go.
        """
        grows = places > self.places
        size = self._size(places)
        for number, pair in enumerate(self.layers):
            moved = [tensor.index_select(0, sources) for tensor in pair]
            if grows:
                pair = (self._empty(size), self._empty(size))
            for tensor, tokens in zip(pair, moved, strict=True):
                tensor.index_copy_(0, targets, tokens)
            self.layers[number] = pair
        self.moves += grows

    def _size(self, places: int) -> int:
        """Return the places allocated where so many are needed: the next of `_PIECES` sizes to the doubling."""
        needed = max(places, self._least // max(self.bytes_of(1), 1), 1)
        piece = max(CHUNK, (1 << (needed.bit_length() - 1)) // _PIECES)
        return -(-needed // piece) * piece

    def _allocate(self, size: int) -> None:
        self.layers = [(self._empty(size), self._empty(size)) for _ in range(self._shape[0])]

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, *self._shape[1:], dtype=self._dtype, device=self._device)


class ArenaCache:
    """The runs of an arena that hold a batch; used as a `KVCache` is."""

    def __init__(self, arena: Arena, capacities: Sequence[int]) -> None:
        """Take places.

        Args:
            arena: no other batch uses it.
            capacities: tokens each sequence needs room for at first.
        """
        self.arena = arena
        self._lengths = [0] * len(capacities)
        self._rooms = [room_for(capacity) for capacity in capacities]
        self.starts = list(accumulate(self._rooms, initial=0))[:-1]
        """First place of each sequence."""
        arena.make_room(sum(self._rooms))

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each sequence of the batch."""
        return list(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory taken, room not used yet included."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.arena.layers)

    @property
    def full(self) -> bool:
        """Whether some sequence has no room for one more token."""
        return any(length >= room for length, room in zip(self._lengths, self._rooms, strict=True))

    def view(self, layer: int, sequence: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the first `length` keys and values of one sequence, [length, groups, d] each; they are not copied."""
        assert length <= self._rooms[sequence]
        keys, values = self.arena.layers[layer]
        start = self.starts[sequence]
        return keys[start : start + length], values[start : start + length]

    def write(self, layer: int, sequence: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store [tokens, groups, d] of one sequence from place `start` of its own on; there must be room."""
        kept_keys, kept_values = self.view(layer, sequence, start + keys.shape[0])
        kept_keys[start:] = keys
        kept_values[start:] = values

    def extend(self, counts: Sequence[int]) -> None:
        """Count so many tokens more for each sequence, and make room for them; they are written layer by layer."""
        self._lengths = [a + b for a, b in zip(self._lengths, counts, strict=True)]
        if any(length > room for length, room in zip(self._lengths, self._rooms, strict=True)):
            held = [length - count for length, count in zip(self._lengths, counts, strict=True)]
            self._rearrange(held, self._lengths)

    def grow(self) -> None:
        """Make room for `CHUNK` tokens more of every sequence, or as many again as it has, whichever is less."""
        more = [length + min(max(length, CHUNK), 4 * CHUNK) for length in self._lengths]
        self._rearrange(self._lengths, more)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences of the batch, in ascending order, and count them anew; nothing is moved."""
        self._lengths = [self._lengths[row] for row in rows]
        self._rooms = [self._rooms[row] for row in rows]
        self.starts = [self.starts[row] for row in rows]

    def forget(self, row: int) -> None:
        """Hold nothing of a sequence any more, but keep its row."""
        self._lengths[row] = 0

    def _rearrange(self, held: Sequence[int], capacities: Sequence[int]) -> None:
        rooms = [room_for(capacity) for capacity in capacities]
        starts = list(accumulate(rooms, initial=0))[:-1]
        runs = [
            (torch.arange(old, old + length), torch.arange(new, new + length))
            for old, new, length in zip(self.starts, starts, held, strict=True)
        ]
        sources, targets = (torch.cat(column) for column in zip(*runs, strict=True))
        device = self.arena.layers[0][0].device
        self.arena.rearrange(sum(rooms), sources.to(device), targets.to(device))
        self._rooms, self.starts = rooms, starts
