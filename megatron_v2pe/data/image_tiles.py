"""Reading the tiles of pictures: opened, cut, resized bicubic, and those of small pictures kept for the next time.

Tiles are bytes until they are on the device, where `kernels/tiles.py` normalises them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megatron_v2pe.data.image_files import open_image
from megatron_v2pe.data.image_operations import Grid, ImageFacts, apply_all
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import read_frames

LARGEST = 1 << 16
"""Bytes of a picture's tiles that are kept, at most."""
MOST = 1 << 25
"""Bytes kept by one process, at most."""


class TileCache:
    """The tiles of small pictures, kept by one reader, which has one tile size and one way of opening.

    Opening a picture of a few pixels costs far more than its pixels do. A data set of small tiles (digits, icons)
    draws the same pictures over and over; InternVL2's tiles of 448 pixels are above the limit and never kept. A picture
    that is changed on its way to the tiles (augmented, padded) is not kept.
    """

    def __init__(self, most: int = MOST) -> None:
        """Keep at most so many bytes; when they are full, further pictures are read each time."""
        self.room = most
        self.kept: dict[Picture, np.ndarray] = {}

    def get(self, picture: Picture) -> np.ndarray | None:
        """Return a picture's tiles if they are here: uint8 [tiles, size, size, 3]."""
        return self.kept.get(picture)

    def offer(self, picture: Picture, tiles: np.ndarray) -> None:
        """Keep a copy of a picture's tiles if they are small and there is room."""
        if picture in self.kept:
            return
        fits = tiles.nbytes <= min(LARGEST, self.room)
        changed = any(operation.stage in ("whole", "tile") for operation in picture.operations)
        if fits and picture.frame is None and not changed:
            self.kept[picture] = tiles.copy()
            self.room -= tiles.nbytes


def read_tiles(
    pictures: Sequence[Picture],
    tile_size: int,
    mean: Sequence[float],
    key: tuple[int, ...] = (),
    open_picture: Callable[[Picture], Image.Image] | None = None,
    out: Tensor | None = None,
    cache: TileCache | None = None,
) -> Tensor:
    """Read and cut pictures: uint8 [tiles, tile_size, tile_size, 3].

    Args:
        pictures: all pictures of one sample.
        tile_size: side of a tile in pixels.
        mean: mean colour of the normalisation, of each channel from 0 to 1, for operations that pad.
        key: seed, epoch and number of the sample, by which the operations' random draws are keyed.
        open_picture: reads an image other than from its path; frames of video files are always read from theirs.
        out: where the tiles go; new memory by default.
        cache: tiles of pictures that this reader has read before.

    Raises:
        DataError: a file is missing or damaged.
    """
    open_picture = open_picture or (lambda picture: open_image(picture.path, operations=picture.operations))
    if out is None:
        total = sum(picture.num_tiles for picture in pictures)
        out = torch.empty(total, tile_size, tile_size, 3, dtype=torch.uint8)
    tiles, position, first = out.numpy(), 0, 0
    for path, group in groupby(pictures, key=lambda picture: picture.path):
        same = list(group)
        if len(same) == 1 and cache is not None and (known := cache.get(same[0])) is not None:
            last = first + same[0].num_tiles
            tiles[first:last] = known
            position, first = position + 1, last
            continue
        frames = [picture.frame for picture in same if picture.frame is not None]
        images = read_frames(path, frames, same[0].operations) if frames else map(open_picture, same)
        for picture, image in zip(same, images, strict=True):
            last = first + picture.num_tiles
            facts = ImageFacts(grid=picture.grid, mean=mean, key=(*key, position))
            _cut(image, picture, tile_size, facts, tiles[first:last])
            if cache is not None:
                cache.offer(picture, tiles[first:last])
            position, first = position + 1, last
    return out


def _cut(image: Image.Image, picture: Picture, tile_size: int, facts: ImageFacts, out: np.ndarray) -> None:
    """Apply the operations of the last two stages to a picture, and cut it."""
    image = apply_all(picture.operations, "whole", image, facts)

    def changed(tile: Image.Image, number: int) -> Image.Image:
        of_tile = ImageFacts(grid=facts.grid, mean=facts.mean, key=(*facts.key, number))
        return apply_all(picture.operations, "tile", tile, of_tile)

    changes_tiles = any(operation.stage == "tile" for operation in picture.operations)
    cut_tiles(image, picture.grid, picture.thumbnail, tile_size, changed if changes_tiles else None, out)


def cut_tiles(
    image: Image.Image,
    grid: Grid | None,
    thumbnail: bool,
    tile_size: int,
    change: Callable[[Image.Image, int], Image.Image] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut an image into tiles.

    Args:
        image: RGB.
        grid: columns and rows; None for the whole image as one tile.
        thumbnail: add the whole image as last tile where the grid has several.
        tile_size: side of a tile in pixels.
        change: applied to each tile (and its number) before it takes its final size.
        out: where the tiles go; new memory by default.

    Returns:
        uint8 [tiles, tile_size, tile_size, 3], row by row, the thumbnail last.
    """
    size = (tile_size, tile_size)
    cells = 1 if grid is None else grid[0] * grid[1]
    count = cells + int(thumbnail and cells > 1)
    tiles = np.empty((count, *size, 3), dtype=np.uint8) if out is None else out
    assert tiles.shape == (count, *size, 3)
    if change is not None:
        parts = [image] if grid is None else _cells(image, grid, tile_size)
        parts += [image.resize(size, Image.Resampling.BICUBIC)] * (count - cells)
        for number, part in enumerate(parts):
            tiles[number] = np.asarray(change(part, number).resize(size, Image.Resampling.BICUBIC))
        return tiles
    columns, rows = grid or (1, 1)
    whole = np.asarray(image.resize((tile_size * columns, tile_size * rows), Image.Resampling.BICUBIC))
    by_cell = whole.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2)
    tiles[:cells].reshape(rows, columns, *size, 3)[:] = by_cell  # one copy, in place of one per crop and per array
    if count > cells:
        tiles[cells] = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return tiles


def _cells(image: Image.Image, grid: Grid, size: int) -> list[Image.Image]:
    columns, rows = grid
    whole = image.resize((size * columns, size * rows), Image.Resampling.BICUBIC)
    corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
    return [whole.crop((x, y, x + size, y + size)) for x, y in corners]
