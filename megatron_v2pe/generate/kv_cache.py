"""The keys and values one rank holds while it generates: of its layers, its key-value heads and its tokens.

Sequences of about the same length stand side by side in a slab, one tensor per layer, so that a decode step attends
over all of them at once and none is padded by more than `CHUNK` tokens. Room is there for the prompt from the start
and grows by `CHUNK`. Heads are never repeated for their queries. Under context parallelism a rank keeps the tokens the
zigzag order gave it; tokens generated later are dealt to the ranks in turn (`owner`). Keys are stored rotated: which
place a token has in here means nothing. Room not used yet holds zeros: what is masked must still be finite.

Example: prompts of 300, 200 and 40 tokens on one rank become a slab of one sequence with room for 512 tokens, and a
slab of two with room for 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

CHUNK = 256
"""Tokens of room by which a slab grows, and by which the lengths of its sequences may differ."""


def owner(generated: int, sequence: int, context_parallel_size: int) -> int:
    """Return the context-parallel rank that keeps a sequence's generated token number `generated`, from 0."""
    return (generated + sequence) % context_parallel_size


class Slab:
    """Sequences `first`, `first + 1`, ... of a batch, with room for equally many tokens."""

    def __init__(self, first: int, lengths: Sequence[int], layers: list[tuple[Tensor, Tensor]]) -> None:
        """Take the tensors; see `KVCache`."""
        self.first = first
        self.lengths = list(lengths)
        """Tokens held here of each sequence."""
        self.layers = layers
        """Per layer keys and values, [sequences, room, groups, d]."""

    @property
    def stop(self) -> int:
        """Number of the sequence after the last."""
        return self.first + len(self.lengths)

    @property
    def room(self) -> int:
        """Tokens each sequence has room for."""
        return self.layers[0][0].shape[1]

    def grow(self, room: int) -> None:
        """Make room for so many tokens; one layer at a time is held twice."""
        for number, pair in enumerate(self.layers):
            grown = [tensor.new_zeros((len(self.lengths), room, *tensor.shape[2:])) for tensor in pair]
            for new, old in zip(grown, pair, strict=True):
                new[:, : old.shape[1]] = old
            self.layers[number] = (grown[0], grown[1])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these of its sequences, counted from 0, in ascending order."""
        index = torch.tensor(rows, device=self.layers[0][0].device)
        self.layers = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in self.layers]
        self.lengths = [self.lengths[row] for row in rows]


class KVCache:
    """Keys and values of a batch on this rank."""

    def __init__(
        self,
        capacities: Sequence[int],
        num_layers: int,
        groups: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make room.

        Args:
            capacities: tokens each sequence needs room for here at first; neighbours of like length share a slab.
            num_layers: decoder layers on this rank.
            groups: key-value heads on this rank.
            head_dim: width of a head.
            dtype: of keys and values.
            device: where they are.
        """
        self.slabs: list[Slab] = []
        first = 0
        for room, run in groupby(map(room_for, capacities)):
            count = len(list(run))
            shape = (count, room, groups, head_dim)
            layers = [
                (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
                for _ in range(num_layers)
            ]
            self.slabs.append(Slab(first, [0] * count, layers))
            first += count

    @property
    def lengths(self) -> list[int]:
        """Tokens held here of each sequence of the batch."""
        return [length for slab in self.slabs for length in slab.lengths]

    @property
    def num_bytes(self) -> int:
        """Bytes of memory taken, room not used yet included."""
        return sum(keys.nbytes + values.nbytes for slab in self.slabs for keys, values in slab.layers)

    def view(self, layer: int, sequence: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the first `length` keys and values of one sequence, [length, groups, d] each; they are not copied."""
        slab, row = self._find(sequence)
        keys, values = slab.layers[layer]
        return keys[row, :length], values[row, :length]

    def write(self, layer: int, sequence: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Store [tokens, groups, d] of one sequence from place `start` on; there must be room."""
        kept_keys, kept_values = self.view(layer, sequence, start + keys.shape[0])
        kept_keys[start:] = keys
        kept_values[start:] = values

    def extend(self, counts: Sequence[int]) -> None:
        """Count so many tokens more for each sequence, and make room for them; they are written layer by layer."""
        for slab in self.slabs:
            slab.lengths = [a + b for a, b in zip(slab.lengths, counts[slab.first : slab.stop], strict=True)]
            if max(slab.lengths) > slab.room:
                slab.grow(-(-max(slab.lengths) // CHUNK) * CHUNK)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences of the batch, in ascending order, and count them anew."""
        slabs, first = [], 0
        for slab in self.slabs:
            mine = [row - slab.first for row in rows if slab.first <= row < slab.stop]
            if not mine:
                continue
            if len(mine) < len(slab.lengths):
                slab.keep(mine)
            slab.first = first
            first = slab.stop
            slabs.append(slab)
        self.slabs = slabs

    def _find(self, sequence: int) -> tuple[Slab, int]:
        for slab in self.slabs:
            if sequence < slab.stop:
                return slab, sequence - slab.first
        raise AssertionError(f"sequence {sequence} of {len(self.lengths)}")


def cache_bytes(capacities: Sequence[int], num_layers: int, groups: int, head_dim: int, dtype: torch.dtype) -> int:
    """Return the bytes a `KVCache` takes at first; arguments are those of its constructor."""
    return 2 * num_layers * groups * head_dim * dtype.itemsize * sum(map(room_for, capacities))


def room_for(capacity: int) -> int:
    """Return the tokens of room a sequence is given that needs so many."""
    return max(1, -(-capacity // CHUNK)) * CHUNK
