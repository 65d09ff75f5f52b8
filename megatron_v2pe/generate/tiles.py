"""Tiles of a prompt's images, read when they are encoded, by the rank that encodes them and by no other.

How many there are follows from the images' headers, so that every rank can plan without pixels. A rank takes its run of
tiles, as training deals them out (`parallel/rank_coordinates.py`), and goes through it: one image is held at a time,
however many there are. Where a card waits for them, threads read images before they are asked for (`TileReader`), a
limited number of tiles ahead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import accumulate

from PIL import Image
from torch import Tensor

from megatron_v2pe.data.image_tiles import read_tiles
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
        self._ahead: dict[tuple[int, int], _Portion] = {}
        """What is read ahead, by number of its first image and of images; shared with parts of the run."""

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._run)

    def __getitem__(self, part: slice) -> ImageTiles:
        """Return a part of the run."""
        chosen = ImageTiles(self._pictures, self._tile_size, self._mean, self._open)
        chosen._run, chosen._ahead = self._run[part], self._ahead
        assert chosen._run.step == 1
        return chosen

    def __iter__(self) -> Iterator[Tensor]:
        """Read the images the tiles belong to, one by one, and give uint8 [tile_size, tile_size, 3] of each tile.

        Raises:
            DataError: an image is missing or damaged; names it.
        """
        for number, pictures in self._portions():
            first = self._firsts[number]
            portion = self._ahead.get((number, len(pictures)))
            tiles = self._read(pictures) if portion is None else portion.take()
            yield from tiles[max(self._run.start - first, 0) : max(self._run.stop - first, 0)]

    def portions_ahead(self, reader: TileReader) -> list[_Portion]:
        """Have what a pass through the run would read be read by a reader; return what is new to it."""
        made: list[_Portion] = []
        for number, pictures in self._portions():
            if (number, len(pictures)) not in self._ahead:
                size = sum(picture.num_tiles for picture in pictures)
                made.append(_Portion(partial(self._read, pictures), size, reader))
                self._ahead[number, len(pictures)] = made[-1]
        return made

    def forget_ahead(self) -> None:
        """Discard what was read ahead and not taken; a further pass reads again."""
        for portion in self._ahead.values():
            portion.reader.release(portion)
        self._ahead.clear()

    def _read(self, pictures: Sequence[Picture]) -> Tensor:
        return read_tiles(pictures, self._tile_size, self._mean, open_picture=self._open)

    def _portions(self) -> Iterator[tuple[int, list[Picture]]]:
        """Yield what is read at once, with the number of its first image: an image, or neighbouring video frames."""
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


class _Portion:
    """Images that are read at once, ahead of use or when they are used."""

    def __init__(self, read: Callable[[], Tensor], tiles: int, reader: TileReader) -> None:
        self.read, self.tiles, self.reader = read, tiles, reader
        self.future: Future[Tensor] | None = None
        """Set while a thread has it."""

    def take(self) -> Tensor:
        """Return the tiles, once from the thread that has read them; later they are read again.

        Raises:
            DataError: an image is missing or damaged; names it.
        """
        future = self.reader.claim(self)
        if future is None:
            return self.read()
        try:
            return future.result()
        finally:
            self.reader.release(self)


class TileReader:
    """Threads that read images ahead, and how much they may hold."""

    def __init__(self, workers: int, most_tiles: int) -> None:
        """Start no thread yet.

        Args:
            workers: threads; decoders let others run meanwhile. 0: nothing is read ahead.
            most_tiles: read and not used; more only where one image has more.
        """
        self.workers = workers
        self._most = most_tiles
        self._pool = ThreadPoolExecutor(workers, "images") if workers else None
        self._waiting: deque[_Portion] = deque()
        self._held = 0
        self._lock = threading.Lock()

    def start(self, tiles: ImageTiles) -> None:
        """Read a run of tiles when those that were started before are read."""
        if self._pool is not None:
            with self._lock:
                self._waiting.extend(tiles.portions_ahead(self))
                self._fill()

    def claim(self, portion: _Portion) -> Future[Tensor] | None:
        """Return the future of a portion a thread has; one that still waits is left to who asks."""
        with self._lock:
            if portion.future is None and portion in self._waiting:
                self._waiting.remove(portion)
            return portion.future

    def release(self, portion: _Portion) -> None:
        """Count a portion as used."""
        with self._lock:
            if portion.future is not None:
                portion.future.cancel()
                portion.future = None
                self._held -= portion.tiles
            elif portion in self._waiting:
                self._waiting.remove(portion)
            self._fill()

    def close(self) -> None:
        """End the threads; what they are at is finished first."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        """Give threads as much as may be held; the lock is taken."""
        while self._waiting and self._pool is not None:
            tiles = self._waiting[0].tiles
            if self._held and self._held + tiles > self._most:
                return
            portion = self._waiting.popleft()
            self._held += tiles
            portion.future = self._pool.submit(portion.read)
