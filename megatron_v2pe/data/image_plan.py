"""How the images and videos of a sample are cut into tiles, decided from their headers alone; no pixels are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from megatron_v2pe.base.keyed_random import seed_of, uniform
from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_operations import Grid, Operations
from megatron_v2pe.data.types import Clip, Picture
from megatron_v2pe.data.video import draw_frames, frame_range, list_frames
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

Key = tuple[int, ...]
"""Seed, epoch and number of a sample."""
SizeOf = Callable[[str], tuple[int, int]]
"""A function that gives width and height of the image of a path."""
LineKey = tuple[int | str, ...]
"""Seed, data set and line of a sample."""


@cache
def candidate_grids(min_num: int, max_num: int) -> tuple[Grid, ...]:
    """Return all grids of `min_num` to `max_num` tiles by (area, columns).

    The reference orders grids of one area by a hash; the choice can only differ for an aspect ratio exactly midway
    between two of them, which cannot happen from one tile on.
    """
    grids = [
        (columns, area // columns)
        for area in range(max(min_num, 1), max_num + 1)
        for columns in range(1, area + 1)
        if area % columns == 0
    ]
    return tuple(grids)


@lru_cache(maxsize=1 << 14)
def choose_grid(width: int, height: int, min_num: int, max_num: int, tile_size: int) -> Grid:
    """Return the grid whose aspect ratio is nearest to the image's (InternVL's dynamic resolution).

    Of grids equally near, the larger wins only if the image has more than half as many pixels as it.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        min_num: fewest tiles, thumbnail not counted.
        max_num: most tiles, thumbnail not counted.
        tile_size: side of a tile in pixels.
    """
    aspect = width / height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in candidate_grids(min_num, max_num):
        difference = abs(aspect - columns / rows)
        large_enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


def count_tiles(grid: Grid, thumbnail: bool) -> int:
    """Return the number of tiles of an image; the thumbnail is added only where there are several."""
    tiles = grid[0] * grid[1]
    return tiles + (1 if thumbnail and tiles > 1 else 0)


@dataclass(frozen=True)
class TilingOptions:
    """How images become tiles, settled for one data set."""

    tile_size: int
    dynamic: bool = True
    """Cut an image into a grid of tiles; otherwise it becomes one tile as a whole."""
    min_num: int = 1
    max_num: int = 12
    share_max_num: bool = False
    """Divide `max_num` among the images of a sample (`dynamic_max_patch`)."""
    thumbnail: bool = True
    operations: Operations = ()
    """What is done to every image, in order."""

    def grid(self, width: int, height: int) -> Grid | None:
        """Return columns and rows an image of a size is cut into; None: it becomes one tile as a whole."""
        return choose_grid(width, height, self.min_num, self.max_num, self.tile_size) if self.dynamic else None

    def operations_for(self, grid: Grid | None) -> Operations:
        """Return the operations that concern an image which is cut into this grid."""
        if all(operation.applies_to(grid) for operation in self.operations):
            return self.operations
        return tuple(operation for operation in self.operations if operation.applies_to(grid))

    def shared_among(self, images: int) -> TilingOptions:
        """Return the options for each image of a sample that has so many."""
        if not self.share_max_num or images < 2:
            return self
        return replace(self, max_num=self.max_num // images)


def plan_images(paths: Sequence[str], options: TilingOptions, size_of: SizeOf = image_size) -> list[Picture]:
    """Decide the tiles of each image.

    Args:
        paths: files of the images.
        options: how they become tiles.
        size_of: gives width and height of the image of a path.

    Raises:
        DataError: a file is missing or not an image.
    """
    options = options.shared_among(len(paths))
    pictures: list[Picture] = []
    for path in paths:
        width, height = size_of(path)
        if any(operation.resizes for operation in options.operations):  # sizes known already are those of the file
            width, height = image_size(path, options.operations)
        grid = options.grid(width, height)
        pictures.append(
            Picture(
                path=path,
                grid=grid,
                thumbnail=options.thumbnail and grid is not None and grid != (1, 1),
                operations=options.operations_for(grid),
            )
        )
    return pictures


def plan_video(
    path: str, clip: tuple[float, float] | None, min_frames: int, max_frames: int, options: TilingOptions, key: LineKey
) -> Clip:
    """Decide how many frames of a video are used.

    Args:
        path: a video file, or a folder of frames (ends with `/`).
        clip: the part of it that is used, start and end in seconds.
        min_frames: fewest frames.
        max_frames: most frames.
        options: how frames become tiles.
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
    return Clip(path, number, first, last, operations=options.operations_for(None))


ClipOf = Callable[[str, tuple[float, float] | None, int, int, TilingOptions, LineKey], Clip]
"""A function that decides how many frames of a video are used: `plan_video`."""


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
            file=clip.file,
            operations=clip.operations,
        )
        for frame in chosen
    ]
