"""How the images and videos of a sample are cut, from their headers alone; and reading their tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megatron_v2pe.base.keyed_random import seed_of, uniform
from megatron_v2pe.data.image_transform import (
    JPEG_QUALITIES,
    cut_tiles,
    image_size,
    jpeg_augment,
    open_image,
    pad_to_square,
)
from megatron_v2pe.data.tile_cache import TileCache
from megatron_v2pe.data.tiling import Grid, choose_grid
from megatron_v2pe.data.types import AS_PUBLISHED, Clip, Opening, Picture
from megatron_v2pe.data.video import draw_frames, frame_range, list_frames, read_frames
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

Key = tuple[int, ...]
"""Seed, epoch and number of a sample."""
SizeOf = Callable[[str], tuple[int, int]]
"""Gives width and height of the image of a path."""
LineKey = tuple[int | str, ...]
"""Seed, data set and line of a sample."""


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
    opening: Opening = AS_PUBLISHED
    """How image files become RGB."""

    def grid(self, width: int, height: int) -> Grid | None:
        """Return columns and rows an image of a size is cut into; None: it becomes one tile as a whole."""
        return choose_grid(width, height, self.min_num, self.max_num, self.tile_size) if self.dynamic else None

    @property
    def pads_images(self) -> bool:
        """Whether images are padded to a square: only those that become one tile as a whole.

        The published code pads what it has cut: the tiles of a grid are square already, and stay as they are.
        """
        return self.pad_to_square and not self.augment and not self.dynamic

    def shared_among(self, images: int) -> TilingOptions:
        """Return the options for each image of a sample that has so many."""
        if not self.share_max_num or images < 2:
            return self
        return replace(self, max_num=self.max_num // images)


def plan_images(paths: Sequence[str], options: TilingOptions, size_of: SizeOf = image_size) -> list[Picture]:
    """Decide the tiles of each image.

    Args:
        paths: of the images.
        options: of tiling.
        size_of: gives width and height of the image of a path.

    Raises:
        DataError: a file is missing or not an image.
    """
    options = options.shared_among(len(paths))
    pictures: list[Picture] = []
    for path in paths:
        width, height = size_of(path)
        if options.opening.exif_rotation:  # sizes that are known already are those of the file
            width, height = image_size(path, options.opening)
        grid = options.grid(width, height)
        pictures.append(
            Picture(
                path=path,
                grid=grid,
                thumbnail=options.thumbnail and grid is not None and grid != (1, 1),
                pad_to_square=options.pads_images,
                augment=options.augment,
                opening=options.opening,
            )
        )
    return pictures


def plan_video(
    path: str, clip: tuple[float, float] | None, min_frames: int, max_frames: int, options: TilingOptions, key: LineKey
) -> Clip:
    """Decide how many frames of a video are used.

    Args:
        path: a video file, or a folder of frames (ends with `/`).
        clip: part of it in seconds.
        min_frames: fewest frames.
        max_frames: most frames.
        options: of tiling.
        key: seed, data set and line: the number is the same in every epoch.

    Raises:
        DataError: the video is missing, damaged or empty.
    """
    number = min_frames + uniform(max_frames - min_frames + 1, *key, purpose="frame count")
    if path.endswith("/"):
        first, last = 0, len(list_frames(path))
        number = min(number, last)
    else:
        first, last = frame_range(path, clip)
    pad = options.pad_to_square and not options.augment
    return Clip(path, number, first, last, pad_to_square=pad, augment=options.augment, opening=options.opening)


ClipOf = Callable[[str, tuple[float, float] | None, int, int, TilingOptions, LineKey], Clip]
"""Decides how many frames of a video are used: `plan_video`."""


def draw_pictures(media: Sequence[Picture | Clip], key: Key) -> tuple[Picture, ...]:
    """Settle what an epoch's pass over a sample sees: its images, and frames of its video drawn by `key`.

    Raises:
        DataError: a folder of frames has another number of them than when the sample was encoded.
    """
    pictures: list[Picture] = []
    for item in media:
        pictures += _frames(item, key) if isinstance(item, Clip) else [item]
    return tuple(pictures)


def _frames(clip: Clip, key: Key) -> list[Picture]:
    files = list_frames(clip.path) if clip.path.endswith("/") else None
    if files is not None and len(files) != clip.last:
        raise DataError(f"{printable(clip.path)}: {len(files)} frames, but {clip.last} when the sample was encoded")
    chosen = range(clip.last)
    if files is None or clip.last > clip.frames:
        chosen = draw_frames(clip.last - clip.first, clip.frames, seed_of(*key, purpose="frames"))
    return [
        Picture(
            path=clip.path if files is None else files[frame],
            grid=None,
            frame=clip.first + frame if files is None else None,
            pad_to_square=clip.pad_to_square,
            augment=clip.augment,
            file=clip.file,
            opening=clip.opening,
        )
        for frame in chosen
    ]


def read_tiles(
    pictures: Sequence[Picture],
    tile_size: int,
    mean: Sequence[float],
    key: Key = (),
    open_picture: Callable[[Picture], Image.Image] | None = None,
    out: Tensor | None = None,
    cache: TileCache | None = None,
) -> Tensor:
    """Read and cut pictures: uint8 [tiles, tile_size, tile_size, 3].

    Args:
        pictures: of one sample, all of them.
        tile_size: side of a tile in pixels.
        mean: colour of padding to a square, per channel.
        key: of the augmentation's draws.
        open_picture: reads an image other than from its path; frames of video files are always read from theirs.
        out: where the tiles go; new memory by default.
        cache: tiles of pictures read before by this reader.

    Raises:
        DataError: a file is missing or damaged.
    """
    open_picture = open_picture or (lambda picture: open_image(picture.path, opening=picture.opening))
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
        images = read_frames(path, frames, same[0].opening) if frames else (open_picture(picture) for picture in same)
        for picture, image in zip(same, images, strict=True):
            last = first + picture.num_tiles
            _cut(image, picture, tile_size, mean, (*key, position), tiles[first:last])
            if cache is not None:
                cache.offer(picture, tiles[first:last])
            position, first = position + 1, last
    return out


def _cut(
    image: Image.Image, picture: Picture, tile_size: int, mean: Sequence[float], key: Key, out: np.ndarray
) -> None:
    if picture.pad_to_square and picture.grid is None:  # older indexed sets mark others too
        image = pad_to_square(image, mean)

    def augment(tile: Image.Image, number: int) -> Image.Image:
        return jpeg_augment(tile, JPEG_QUALITIES[uniform(len(JPEG_QUALITIES), *key, number, purpose="jpeg quality")])

    cut_tiles(image, picture.grid, picture.thumbnail, tile_size, augment if picture.augment else None, out)
