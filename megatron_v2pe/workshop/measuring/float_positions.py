"""The reference's floating construction of positions: the peer that tests and benchmarks hold the lattice against.

It runs one `arange` per image in float32 and ends it at a float32 number. Where that end is not representable the image
gets an element too many or too few, and far from zero neighbouring tokens round to the same position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FloatPositions:
    """What the floating construction made of a document."""

    positions: Tensor
    """float32; not as long as the document if an image was miscounted."""
    counts: list[int]
    """Per image: positions it got, right or wrong."""


def float_construction(
    length: int, images: Sequence[tuple[int, int]], strides: Sequence[float], tokens_per_tile: int
) -> FloatPositions:
    """Build the positions of a document without padding as the reference does.

    Args:
        length: tokens of the document.
        images: per image: index of its first image token, number of tiles.
        strides: per image: positions one tile spans.
        tokens_per_tile: image tokens per tile.
    """
    parts: list[Tensor] = []
    counts: list[int] = []
    last = torch.tensor(-1)
    index = 0
    for (start, tiles), stride in zip(images, strides, strict=True):
        if start > index:
            parts.append(torch.arange(start - index) + (last + 1))
            last = parts[-1][-1]
        delta = float(stride) / tokens_per_tile
        end = last + delta * (tokens_per_tile * tiles + 1)  # an int64 scalar plus a Python float is float32
        visual = torch.arange(last.item(), end.item(), delta, dtype=torch.float32)[1:]
        parts.append(visual)
        counts.append(len(visual))
        last = torch.ceil(visual[-1]).long()
        index = start + tiles * tokens_per_tile
    parts.append(torch.arange(length - index) + (last + 1))
    return FloatPositions(torch.cat([part.to(torch.float32) for part in parts]), counts)


def miscounted(result: FloatPositions, images: Sequence[tuple[int, int]], tokens_per_tile: int) -> int:
    """Return how many images got too many or too few positions; the reference rejects such a document."""
    pairs = zip(result.counts, images, strict=True)
    return sum(count != tiles * tokens_per_tile for count, (_, tiles) in pairs)


def collapsed(positions: Tensor) -> int:
    """Return how many tokens have the same position as the one before them."""
    return int((positions[1:] == positions[:-1]).sum())
