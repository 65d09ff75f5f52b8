"""Token positions under V2PE, exactly: integers over a common denominator, never floats until the rotary module.

A text token advances the position by 1, each token of an image by `stride / tokens_per_tile`; after an image, text
resumes at the next whole position (behaviour of the reference, definition in arXiv 2412.09616). With stride d, T tokens
per tile, and p the whole position of the token before an image of n tokens (-1 where there is none):

    position of image token t = p + t * d / T  (t = 1 to n),  position of the token behind = ceil(p + n * d / T) + 1

Positions are int64 *ticks*: position = ticks / denominator. The reference builds them with a floating `arange`, which
gives a wrong number of elements or equal positions for distant tokens beyond 65,536; integers do neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from megatron_v2pe.errors import DataError, LayoutError
from megatron_v2pe.v2pe.settings import Stride, smallest_denominator


@dataclass(frozen=True, eq=False)
class Ticks:
    """Positions of tokens, exactly: position = tick / denominator. The denominator stays with the ticks."""

    values: Tensor
    """int64 [S], the ticks."""
    denominator: int
    """Ticks of one position."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.values.shape[0]

    @property
    def last(self) -> int:
        """Tick of the last token."""
        return int(self.values[-1])

    @property
    def reach(self) -> int:
        """Whole positions from 0 up to that of the last token."""
        return self.last // self.denominator + 1

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Ticks:
        """Return what `change` makes of the ticks, for example a part of them, or a copy on a device."""
        return Ticks(change(self.values), self.denominator)

    def over(self, denominator: int) -> Tensor:
        """Return the ticks as int64 [S] to a caller that counts positions by `denominator`.

        Raises:
            LayoutError: these ticks are counted by another one; both are printed.
        """
        if self.denominator != denominator:
            raise LayoutError(
                f"{len(self)} positions are counted in ticks of 1/{self.denominator}, expected ticks of 1/{denominator}"
            )
        return self.values

    @staticmethod
    def joined(parts: Sequence[Ticks], denominator: int) -> Ticks:
        """Return the ticks of several documents one behind the other; no documents give none.

        Raises:
            LayoutError: one of them is counted by another denominator; both are printed.
        """
        none = torch.empty(0, dtype=torch.int64)
        return Ticks(torch.cat([none, *(part.over(denominator) for part in parts)]), denominator)


def position_ticks(
    length: int,
    images: Sequence[tuple[int, int]],
    strides: Sequence[Stride],
    tokens_per_tile: int,
    denominator: int | None = None,
    mask: Tensor | None = None,
) -> Ticks:
    """Compute the positions of one document.

    Args:
        length: tokens of the document.
        images: per image, in order: index of its first image token, number of tiles (the thumbnail is a tile).
        strides: per image: positions one tile spans.
        tokens_per_tile: image tokens per tile.
        denominator: the lattice's; the smallest that fits by default.
        mask: [length], 1 for real tokens. A masked token gets position 1 and does not advance.

    Returns:
        Ticks of all its tokens, [length].

    Raises:
        DataError: images and strides differ in number, an image is empty, overlaps another or leaves the document, or
            a stride does not lie on the lattice; the numbers are printed.
    """
    if len(images) != len(strides):
        raise DataError(f"{len(images)} images but {len(strides)} strides")
    denominator = denominator or smallest_denominator(strides, tokens_per_tile)
    step_of = {stride: _ticks_per_token(stride, tokens_per_tile, denominator) for stride in set(strides)}
    # Arrays, not tensors: documents are many and short, and an operation on a tensor costs several times as much.
    starts = np.array([start for start, _ in images], dtype=np.int64)
    counts = np.array([tiles * tokens_per_tile for _, tiles in images], dtype=np.int64)
    ends = starts + counts
    _check_images(starts, ends, length)
    step = np.array([step_of[stride] for stride in strides], dtype=np.int64)
    followed = ends < length
    # What each token advances by: the sum of its changes, at an image's start and after its end.
    advance = np.zeros(length, dtype=np.int64)
    advance[:1] = denominator
    np.add.at(advance, starts, step - denominator)
    np.add.at(advance, ends[followed], (denominator - step)[followed])
    advance.cumsum(out=advance)
    real = None if mask is None else mask.cpu().numpy().astype(bool)
    if real is not None:
        advance *= real
    # The token after an image moves up to the next whole position: it advances by the rest that is missing.
    np.add.at(advance, ends[followed], (-(step * counts) % denominator)[followed])
    ticks = advance.cumsum(out=advance)
    ticks -= denominator
    if real is not None:
        ticks = np.where(real, ticks, denominator)
    return Ticks(torch.from_numpy(ticks), denominator)


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


def _check_images(starts: np.ndarray, ends: np.ndarray, length: int) -> None:
    if not len(starts):
        return
    empty = np.flatnonzero(ends <= starts)
    if len(empty):
        raise DataError(f"image {int(empty[0])} has no tiles, from {int(starts[empty[0]])} to {int(ends[empty[0]])}")
    if int(starts[0]) < 0 or int(ends[-1]) > length:
        raise DataError(f"images reach from {int(starts[0])} to {int(ends[-1])} in a document of {length} tokens")
    overlapping = np.flatnonzero(starts[1:] < ends[:-1])
    if len(overlapping):
        first = int(overlapping[0])
        raise DataError(
            f"image {first + 1} starts at {int(starts[first + 1])}, before image {first} ends at {int(ends[first])}"
        )
