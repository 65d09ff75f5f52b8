"""The bins in which a run counts how long its documents are and how many tiles they have."""

from __future__ import annotations

from math import log2

LENGTH_BINS = 48
"""Bins of documents by tokens: bin b holds lengths from 2^(b/2) up to 2^((b+1)/2); the last all above."""
TILE_BINS = 48
"""Bins of documents by tiles: one for each number below 33, then from 32 * 2^((b-32)/2) on; the last all above."""
_SINGLE_TILES = 32


def length_bin(tokens: int) -> int:
    """Return the bin of a document of so many tokens, at least 1."""
    return min(int(2 * log2(tokens)), LENGTH_BINS - 1)


def tile_bin(tiles: int) -> int:
    """Return the bin of a document of so many tiles."""
    if tiles <= _SINGLE_TILES:
        return tiles
    return min(_SINGLE_TILES + int(2 * log2(tiles / _SINGLE_TILES)), TILE_BINS - 1)


def length_range(number: int) -> tuple[int, int]:
    """Return the least and the largest number of tokens of a bin; the largest of the last is that of its formula."""
    first, behind = (2 ** ((number + more) / 2) for more in (0, 1))
    return _ceil(first), _ceil(behind) - 1


def tile_range(number: int) -> tuple[int, int]:
    """Return the least and the largest number of tiles of a bin; the largest of the last is that of its formula."""
    if number < _SINGLE_TILES:
        return number, number
    first, behind = (_SINGLE_TILES * 2 ** ((number - _SINGLE_TILES + more) / 2) for more in (0, 1))
    return _ceil(first), _ceil(behind) - 1


def _ceil(value: float) -> int:
    return int(-(-value // 1))
