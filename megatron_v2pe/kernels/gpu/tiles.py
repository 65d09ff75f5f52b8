"""Bytes of tiles to normalised pixels in one pass: a program looks up a run of pixels of one tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _normalise(tiles, table, result, pixels, BLOCK: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    for channel in range(3):
        byte = tl.load(tiles + (tile * pixels + pixel) * 3 + channel, mask=inside, other=0).to(tl.int32)
        value = tl.load(table + channel * 256 + byte, mask=inside)
        tl.store(result + (tile * 3 + channel) * pixels + pixel, value, mask=inside)


def normalise(tiles: Tensor, table: Tensor) -> Tensor:
    """Look up contiguous bytes [T, H, W, 3] in a table [3, 256]: [T, 3, H, W] in the table's type."""
    count, height, width, _ = tiles.shape
    result = table.new_empty(count, 3, height, width)
    pixels = height * width
    if result.numel():
        _normalise[(count, triton.cdiv(pixels, _BLOCK))](tiles, table, result, pixels, BLOCK=_BLOCK)
    return result
