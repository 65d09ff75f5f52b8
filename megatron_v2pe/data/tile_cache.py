"""Tiles of small pictures, kept from one reading to the next.

Opening a picture of a few pixels costs far more than its pixels do. A data set of small tiles (digits, icons) draws the
same pictures over and over; InternVL2's tiles of 448 pixels are above the limit and never kept.
"""

from __future__ import annotations

import numpy as np

from megatron_v2pe.data.types import Picture

LARGEST = 1 << 16
"""Bytes of a picture's tiles that are kept, at most."""
MOST = 1 << 25
"""Bytes kept by one process, at most."""


class TileCache:
    """Tiles by picture, of one reader: one tile size, one way of opening.

    A picture that is augmented or padded comes out differently each time, and is not kept.
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
        if fits and picture.frame is None and not picture.augment and not picture.pad_to_square:
            self.kept[picture] = tiles.copy()
            self.room -= tiles.nbytes
