"""Token positions under V2PE, exactly: integers over a common denominator, never floats until the rotary module.

A text token advances the position by 1, each token of an image by `stride / tokens_per_tile`; after an image, text
resumes at the next whole position (behaviour of the reference, definition in arXiv 2412.09616). Positions are int64
*ticks*: position = ticks / denominator. The reference builds them with a floating `arange`, which gives a wrong number
of elements or equal positions for distant tokens beyond 65,536; integers do neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from megatron_v2pe.errors import DataError

Stride = int | Fraction
"""Positions one tile spans: `tokens_per_tile` for ordinary positions, less for V2PE."""


def position_ticks(
    length: int,
    images: Sequence[tuple[int, int]],
    strides: Sequence[Stride],
    tokens_per_tile: int,
    denominator: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Compute the positions of one document.

    Args:
        length: tokens of the document.
        images: per image, in order: index of its first image token, number of tiles (the thumbnail is a tile).
        strides: per image: positions one tile spans.
        tokens_per_tile: image tokens per tile.
        denominator: the lattice's; the smallest that fits by default.
        mask: [length], 1 for real tokens. A masked token gets position 1 and does not advance.

    Returns:
        int64 ticks [length], and the denominator.

    Raises:
        DataError: images and strides differ in number, overlap or leave the document, or a stride does not lie on the
            lattice; the numbers are printed.
    """
    if len(images) != len(strides):
        raise DataError(f"{len(images)} images but {len(strides)} strides")
    denominator = denominator or smallest_denominator(strides, tokens_per_tile)
    steps = [_ticks_per_token(stride, tokens_per_tile, denominator) for stride in strides]
    starts = torch.tensor([start for start, _ in images], dtype=torch.int64)
    counts = torch.tensor([tiles * tokens_per_tile for _, tiles in images], dtype=torch.int64)
    _check_images(starts, starts + counts, length)
    # Text and images take turns: a run of text (perhaps empty), an image, a run of text, ...
    borders = torch.stack([starts, starts + counts], 1).flatten()
    lengths = torch.diff(borders, prepend=borders.new_zeros(1), append=borders.new_tensor([length]))
    step = torch.tensor(steps, dtype=torch.int64)
    per_run = torch.full((len(lengths),), denominator, dtype=torch.int64)
    per_run[1::2] = step
    advance = per_run.repeat_interleave(lengths)
    # What an image leaves to the next whole position is added to the token after it.
    following = starts + counts
    present = following < length
    advance.index_add_(0, following[present], (-(step * counts) % denominator)[present])
    if mask is not None:
        advance *= mask.to(torch.int64)
    ticks = advance.cumsum(0) - denominator
    return (ticks if mask is None else torch.where(mask.bool(), ticks, denominator)), denominator


def smallest_denominator(strides: Sequence[Stride], tokens_per_tile: int) -> int:
    """Return `tokens_per_tile` times the least common multiple of the strides' own denominators."""
    common = 1
    for stride in strides:
        part = Fraction(stride).denominator
        common = common * part // _gcd(common, part)
    return tokens_per_tile * common


def to_float32(ticks: Tensor, denominator: int) -> Tensor:
    """Return positions as the reference's float32, each rounded once. For comparison; the model takes ticks."""
    return (ticks.to(torch.float64) / denominator).to(torch.float32)


def continue_positions(last_tick: int, count: int, denominator: int) -> Tensor:
    """Return int64 ticks [count] of generated tokens: one whole position each after the prompt's last."""
    return last_tick + denominator * torch.arange(1, count + 1, dtype=torch.int64)


def find_images(
    input_ids: Tensor,
    num_tiles: Sequence[int],
    tokens_per_tile: int,
    img_start_id: int,
    img_end_id: int,
    img_context_id: int,
) -> list[tuple[int, int]]:
    """Find the images of a document and check them against their tile counts.

    Args:
        input_ids: [length].
        num_tiles: tiles of each image, in order.
        tokens_per_tile: image tokens per tile.
        img_start_id: id of `<img>`.
        img_end_id: id of `</img>`.
        img_context_id: id of `<IMG_CONTEXT>`.

    Returns:
        Per image: index of its first image token, number of tiles.

    Raises:
        DataError: numbers of images or of image tokens differ; both are printed.
    """
    starts = (input_ids == img_start_id).nonzero().flatten().tolist()
    if len(starts) != len(num_tiles):
        raise DataError(f"{len(starts)} <img> tokens in the text, but {len(num_tiles)} images")
    context = (input_ids == img_context_id).to(torch.int64)
    total = [0, *context.cumsum(0).tolist()]
    for number, (start, tiles) in enumerate(zip(starts, num_tiles, strict=True)):
        end = start + 1 + tiles * tokens_per_tile
        found = total[min(end, len(input_ids))] - total[start + 1]
        if found != tiles * tokens_per_tile:
            raise DataError(
                f"image {number}: {found} image tokens follow <img> at index {start}, expected {tiles} tiles x "
                f"{tokens_per_tile} = {tiles * tokens_per_tile}"
            )
        if end >= len(input_ids) or int(input_ids[end]) != img_end_id:
            raise DataError(f"image {number}: no </img> at index {end} after {tiles} tiles of {tokens_per_tile} tokens")
    expected = sum(num_tiles) * tokens_per_tile
    if total[-1] != expected:
        raise DataError(f"{total[-1]} image tokens in the text, but {expected} belong to images")
    return [(start + 1, tiles) for start, tiles in zip(starts, num_tiles, strict=True)]


def _ticks_per_token(stride: Stride, tokens_per_tile: int, denominator: int) -> int:
    ticks = Fraction(stride) * denominator / tokens_per_tile
    if ticks.denominator != 1 or ticks <= 0:
        raise DataError(
            f"stride {stride} over {tokens_per_tile} tokens per tile is not a positive multiple of 1/{denominator}"
        )
    return ticks.numerator


def _check_images(starts: Tensor, ends: Tensor, length: int) -> None:
    if not len(starts):
        return
    if int(starts[0]) < 0 or int(ends[-1]) > length:
        raise DataError(f"images reach from {int(starts[0])} to {int(ends[-1])} in a document of {length} tokens")
    overlapping = (starts[1:] < ends[:-1]).nonzero().flatten()
    if len(overlapping):
        first = int(overlapping[0])
        raise DataError(
            f"image {first + 1} starts at {int(starts[first + 1])}, before image {first} ends at {int(ends[first])}"
        )


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
