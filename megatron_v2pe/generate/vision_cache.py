"""Image features kept from one question to the next, by what the tiles show; the least recently used go first.

A tile's key is a hash of its bytes, which follow from the image's content and its tiling. Tiles are looked up one by
one: under context parallelism an image's tiles may be encoded on several ranks, and another ones in the next prompt;
every rank keeps what it has encoded itself, so no rank needs to ask what another one holds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

DEFAULT_BYTES = 1 << 30
TILES_AT_ONCE = 16
"""Tiles encoded in one forward pass of the tower: its activations stay bounded however many there are."""


class VisionCache:
    """Features by tile, bounded by bytes."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        """Start empty; `max_bytes` 0 keeps nothing."""
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = self.misses = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    def encode(self, tiles: Iterable[Tensor], count: int, encoder: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features of tiles, encoding those not kept.

        Args:
            tiles: each once gone through, and held no longer than until it is encoded.
            count: how many there are, at least 1.
            encoder: turns [k, ...] of them into features [k, tokens, hidden]; called with `TILES_AT_ONCE` at most.

        Returns:
            [count, tokens, hidden].
        """
        first_rows: dict[bytes, int] = {}
        places: list[int] = []
        waiting: dict[bytes, Tensor] = {}
        result: Tensor | None = None

        def put(keys: Iterable[bytes], features: Tensor) -> Tensor:
            whole = features.new_empty((count, *features.shape[1:])) if result is None else result
            whole[[first_rows[key] for key in keys]] = features
            return whole

        for row, tile in enumerate(tiles):
            key = _key(tile)
            places.append(first_rows.setdefault(key, row))
            if places[row] < row:
                continue
            if (kept := self._features.get(key)) is not None:
                self._features.move_to_end(key)
                result = put([key], kept.unsqueeze(0))
                continue
            waiting[key] = tile
            if len(waiting) == TILES_AT_ONCE:
                result, waiting = put(waiting, self._encoded(waiting, encoder)), {}
        if waiting:
            result = put(waiting, self._encoded(waiting, encoder))
        assert result is not None and len(places) == count, f"{len(places)} tiles, expected {count}"
        self.hits += count
        for row, first in enumerate(places):
            if first < row:
                result[row] = result[first]
        return result

    def clear(self) -> None:
        """Forget all features: another tower would give others."""
        self._features.clear()
        self.num_bytes = 0

    def _encoded(self, tiles: Mapping[bytes, Tensor], encoder: Callable[[Tensor], Tensor]) -> Tensor:
        """Encode new tiles together, and keep what they gave."""
        features = encoder(torch.stack(list(tiles.values())))
        self.hits -= len(tiles)
        self.misses += len(tiles)
        for key, own in zip(tiles, features, strict=True):
            self._keep(key, own)
        return features

    def _keep(self, key: bytes, features: Tensor) -> None:
        if features.nbytes > self.max_bytes:
            return
        self._features[key] = features.clone()  # of its own, not a view that keeps its whole batch alive
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.num_bytes -= oldest.nbytes


def _key(tile: Tensor) -> bytes:
    assert tile.device.type == "cpu", "a tile is hashed before it is moved: the device is not waited for"
    content = tile.contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).digest()
