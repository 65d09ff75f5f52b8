"""Documents for tests of positions: written as runs of text and images."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from torch import Tensor

from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import Stride


def document(runs: Sequence[int | tuple[int]], tokens_per_tile: int) -> tuple[int, list[tuple[int, int]]]:
    """Return length and images of a document.

    Args:
        runs: an integer is that many text tokens, `(tiles,)` an image between its `<img>` and `</img>`.
        tokens_per_tile: image tokens per tile.
    """
    length, images = 0, []
    for run in runs:
        if isinstance(run, int):
            length += run
        else:
            images.append((length + 1, run[0]))
            length += run[0] * tokens_per_tile + 2
    return length, images


def by_definition(
    length: int, images: Sequence[tuple[int, int]], strides: Sequence[Stride], tokens_per_tile: int
) -> list[Fraction]:
    """Positions token by token in exact fractions, straight from the definition: slow and plain."""
    positions: list[Fraction] = []
    last, index = -1, 0
    for (start, tiles), stride in zip(images, strides, strict=True):
        positions += [Fraction(last + k) for k in range(1, start - index + 1)]
        last += start - index
        count = tiles * tokens_per_tile
        positions += [last + k * Fraction(stride) / tokens_per_tile for k in range(1, count + 1)]
        last, index = ceil(positions[-1]), start + count
    return positions + [Fraction(last + k) for k in range(1, length - index + 1)]


def counted(ticks: Ticks) -> tuple[Tensor, int]:
    """Return the ticks as a tensor, and their denominator."""
    return ticks.values, ticks.denominator
