"""Which grid of tiles an image is cut into (InternVL's dynamic resolution), as a function of its size alone."""

from __future__ import annotations

from functools import cache, lru_cache

Grid = tuple[int, int]
"""Columns, rows."""


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
    """Return the grid whose aspect ratio is nearest to the image's.

    Of grids equally near, the larger wins only if the image has more than half as many pixels as it.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
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
    """Return the tiles of an image; the thumbnail is added only where there are several."""
    tiles = grid[0] * grid[1]
    return tiles + (1 if thumbnail and tiles > 1 else 0)
