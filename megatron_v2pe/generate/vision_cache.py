"""Image features kept from one question to the next, by what the tiles show; the least recently used go first.

A tile's key is a hash of its bytes, which follow from the image's content and its tiling. Tiles are looked up one by
one: under context parallelism an image's tiles may be encoded on several ranks, and another ones in the next prompt;
every rank keeps what it has encoded itself, so no rank needs to ask what another one holds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

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

    def encode(self, tiles: Tensor, encoder: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features of tiles, encoding those not kept.

        Args:
            tiles: [n, ...], n at least 1.
            encoder: turns [k, ...] of them into features [k, tokens, hidden]; called with `TILES_AT_ONCE` at most.

        Returns:
            [n, tokens, hidden].
        """
        keys = [_key(tile) for tile in tiles]
        found = {key: self._features[key] for key in keys if key in self._features}
        missing = {key: number for number, key in enumerate(keys) if key not in found}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        for names in _chunks(list(missing), TILES_AT_ONCE):
            features = encoder(tiles[[missing[name] for name in names]])
            found.update(zip(names, features, strict=True))
        for key in dict.fromkeys(keys):
            self._keep(key, found[key])
        return torch.stack([found[key] for key in keys])

    def _keep(self, key: bytes, features: Tensor) -> None:
        if key in self._features:
            self._features.move_to_end(key)
            return
        if features.nbytes > self.max_bytes:
            return
        self._features[key] = features.clone()  # of its own, not a view that keeps its whole batch alive
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            self.num_bytes -= oldest.nbytes


def _key(tile: Tensor) -> bytes:
    content = tile.contiguous().cpu().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).digest()


def _chunks(names: list[bytes], size: int) -> list[list[bytes]]:
    return [names[start : start + size] for start in range(0, len(names), size)]
