"""How the images and videos of a sample are cut, from their headers alone; and reading their tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megatron_v2pe.data.image_transform import (
    JPEG_QUALITIES,
    cut_tiles,
    image_size,
    jpeg_augment,
    open_image,
    pad_to_square,
)
from megatron_v2pe.data.tiling import choose_grid
from megatron_v2pe.data.types import Picture
from megatron_v2pe.data.video import draw_frames, frame_range, list_frames, read_frames
from megatron_v2pe.keyed_random import seed_of, uniform

Key = tuple[int, ...]
"""Seed, epoch and number of a sample."""


@dataclass(frozen=True)
class TilingOptions:
    """How images become tiles, settled for one dataset."""

    tile_size: int
    dynamic: bool = True
    min_num: int = 1
    max_num: int = 12
    share_max_num: bool = False
    """Divide `max_num` among the images of a sample (`dynamic_max_patch`)."""
    thumbnail: bool = True
    pad_to_square: bool = False
    augment: bool = False


def plan_images(paths: Sequence[str], options: TilingOptions, key: Key) -> list[Picture]:
    """Decide the tiles of each image.

    Raises:
        DataError: a file is missing or not an image.
    """
    max_num = options.max_num // len(paths) if options.share_max_num and len(paths) > 1 else options.max_num
    pictures: list[Picture] = []
    for number, path in enumerate(paths):
        size = image_size(path)
        grid = choose_grid(*size, options.min_num, max_num, options.tile_size) if options.dynamic else None
        pictures.append(
            Picture(
                path=path,
                grid=grid,
                thumbnail=options.thumbnail and grid is not None and grid != (1, 1),
                pad_to_square=options.pad_to_square and not options.augment,
                augment=(*key, number) if options.augment else None,
            )
        )
    return pictures


def plan_video(
    path: str, clip: tuple[float, float] | None, min_frames: int, max_frames: int, options: TilingOptions, key: Key
) -> list[Picture]:
    """Draw frames of a video, one tile each.

    Raises:
        DataError: the video is missing, damaged or empty.
    """
    number = min_frames + uniform(max_frames - min_frames + 1, *key, purpose="frame count")
    seed = seed_of(*key, purpose="frames")
    common = {"grid": None, "pad_to_square": options.pad_to_square and not options.augment}
    if path.endswith("/"):
        files = list_frames(path)
        chosen = [files[i] for i in draw_frames(len(files), number, seed)] if len(files) > number else files
        places: list[tuple[str, int | None]] = [(file, None) for file in chosen]
    else:
        first, last = frame_range(path, clip)
        places = [(path, first + frame) for frame in draw_frames(last - first, number, seed)]
    return [
        Picture(path=file, frame=frame, augment=(*key, index) if options.augment else None, **common)
        for index, (file, frame) in enumerate(places)
    ]


def read_tiles(pictures: Sequence[Picture], tile_size: int, mean: Sequence[float]) -> Tensor:
    """Read and cut pictures: uint8 [tiles, tile_size, tile_size, 3].

    Raises:
        DataError: a file is missing or damaged.
    """
    tiles: list[np.ndarray] = []
    for path, group in groupby(pictures, key=lambda picture: picture.path):
        same = list(group)
        frames = [picture.frame for picture in same if picture.frame is not None]
        images = read_frames(path, frames) if frames else [open_image(path) for _ in same]
        for picture, image in zip(same, images, strict=True):
            tiles.append(_cut(image, picture, tile_size, mean))
    if not tiles:
        return torch.empty(0, tile_size, tile_size, 3, dtype=torch.uint8)
    return torch.from_numpy(np.concatenate(tiles))


def _cut(image: Image.Image, picture: Picture, tile_size: int, mean: Sequence[float]) -> np.ndarray:
    if picture.pad_to_square:
        image = pad_to_square(image, mean)
    key = picture.augment
    if key is None:
        return cut_tiles(image, picture.grid, picture.thumbnail, tile_size)

    def augment(tile: Image.Image, number: int) -> Image.Image:
        return jpeg_augment(tile, JPEG_QUALITIES[uniform(len(JPEG_QUALITIES), *key, number, purpose="jpeg quality")])

    return cut_tiles(image, picture.grid, picture.thumbnail, tile_size, augment)
