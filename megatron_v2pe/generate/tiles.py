"""Tiles of a prompt's images, read when they are encoded, by the rank that encodes them and by no other.

How many there are follows from the images' headers, so that every rank can plan without pixels. A rank takes its run of
tiles, as training deals them out (`parallel/placement.py`), and goes through it: one image is held at a time, however
many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from PIL import Image
from torch import Tensor

from megatron_v2pe.data.pictures import read_tiles
from megatron_v2pe.data.types import Picture


class ImageTiles:
    """A run of the tiles of images."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        tile_size: int,
        mean: Sequence[float],
        open_picture: Callable[[Picture], Image.Image] | None = None,
    ) -> None:
        """Take all tiles of some images; nothing is read.

        Args:
            pictures: what they are.
            tile_size: side of a tile in pixels.
            mean: colour of padding to a square, per channel.
            open_picture: reads an image other than from its path; frames of video files are always read from theirs.
        """
        self._pictures, self._tile_size, self._mean, self._open = tuple(pictures), tile_size, mean, open_picture
        self._firsts = (0, *accumulate(picture.num_tiles for picture in pictures))
        self._run = range(self._firsts[-1])

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._run)

    def __getitem__(self, part: slice) -> ImageTiles:
        """Return a part of the run."""
        chosen = ImageTiles(self._pictures, self._tile_size, self._mean, self._open)
        chosen._run = self._run[part]
        assert chosen._run.step == 1
        return chosen

    def __iter__(self) -> Iterator[Tensor]:
        """Read the images the tiles belong to, one by one, and give uint8 [tile_size, tile_size, 3] of each tile.

        Raises:
            DataError: an image is missing or damaged; names it.
        """
        for number, pictures in self._portions():
            first = self._firsts[number]
            tiles = read_tiles(pictures, self._tile_size, self._mean, open_picture=self._open)
            yield from tiles[max(self._run.start - first, 0) : max(self._run.stop - first, 0)]

    def _portions(self) -> Iterator[tuple[int, list[Picture]]]:
        """What is read at once, behind the number of its first image: an image, or neighbouring frames of a video."""
        inside = [
            number
            for number in range(len(self._pictures) if self._run else 0)
            if self._firsts[number] < self._run.stop and self._firsts[number + 1] > self._run.start
        ]
        while inside:
            first, count = self._pictures[inside[0]], 1
            while first.frame is not None and count < len(inside):
                following = self._pictures[inside[count]]
                if following.frame is None or following.path != first.path:
                    break
                count += 1
            yield inside[0], [self._pictures[number] for number in inside[:count]]
            inside = inside[count:]
