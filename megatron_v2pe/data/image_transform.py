"""From image files to tiles: opened as RGB, resized bicubic, cut, augmented; normalised later, on the device.

Tiles travel as bytes; `kernels/tiles.py` normalises them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from megatron_v2pe.data.decoding import decoding
from megatron_v2pe.data.image_opening import check_kind, to_rgb, upright_size
from megatron_v2pe.data.tiling import Grid
from megatron_v2pe.data.types import AS_PUBLISHED, Opening
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign import images as foreign
from megatron_v2pe.foreign.printable import printable

NORMALISATION: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.4814546, 0.4578275, 0.40821073), (0.2686295, 0.2613025, 0.2757711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation per channel, by `normalize_type`."""
JPEG_QUALITIES = range(75, 101)
"""What the JPEG augmentation draws from."""


def image_size(path: str, opening: Opening = AS_PUBLISHED) -> tuple[int, int]:
    """Return width and height as `open_image` gives them, reading no more than the file's header.

    Raises:
        DataError: no such file, or not an image.
    """
    with opened_image(path) as image, decoding(path, "damaged image"):
        return upright_size(image, opening)


def open_image(path: str, frame: int = 0, opening: Opening = AS_PUBLISHED) -> Image.Image:
    """Read an image, or one frame of an animated one, as RGB.

    Raises:
        DataError: no such file, not an image, damaged, or of a kind that is not read.
    """
    with opened_image(path) as image:
        return as_rgb(image, path, opening, frame)


def as_rgb(image: Image.Image, path: str, opening: Opening = AS_PUBLISHED, frame: int = 0) -> Image.Image:
    """Read the pixels of an image opened by `opened_image`, as RGB by the rule of `data.image_opening`.

    Raises:
        DataError: damaged, or its values are not read; names the file.
    """
    with decoding(path, "damaged image"), _naming(path):
        return to_rgb(ImageSequence.Iterator(image)[frame] if frame else image, opening)


def opened_image(path: str, content: bytes | None = None) -> Image.Image:
    """Return an image whose header is read, its pixels not; to be closed.

    Args:
        path: of the file.
        content: its bytes where they are known already.

    Raises:
        DataError: no such file, a pipe, a folder or a device, not an image of a format that is read, or of a kind that
            is not read (`data.image_opening`).
    """
    with decoding(path, "cannot be read"):
        try:
            image = foreign.open_image(path if content is None else content, DataError)
        except UnidentifiedImageError:
            size = os.path.getsize(path) if content is None else len(content)
            raise DataError(f"{printable(path)}: not an image ({size} bytes){_hint(path, content)}") from None
        except DataError:
            if content is None and not os.path.exists(path):
                raise DataError(f"{printable(path)}: no such image") from None
            raise
        with _naming(path):
            try:
                check_kind(image)
            except DataError:
                image.close()
                raise
        return image


def _hint(path: str, content: bytes | None) -> str:
    """Say what a file that is not known may be: of a TIFF of a kind it does not read Pillow says no more."""
    if content is None:
        with open(path, "rb") as stream:
            content = stream.read(4)
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ""
    return (
        ": a damaged TIFF, or of samples that are not read (64-bit floats, float colours); save it as 8 or 16-bit PNG"
    )


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in errors about its kind."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from None


def cut_tiles(
    image: Image.Image,
    grid: Grid | None,
    thumbnail: bool,
    tile_size: int,
    augment: Callable[[Image.Image, int], Image.Image] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cut an image into tiles.

    Args:
        image: RGB.
        grid: columns and rows; None for the whole image as one tile.
        thumbnail: add the whole image as last tile where the grid has several.
        tile_size: side of a tile in pixels.
        augment: applied to each tile (and its number) before it takes its final size.
        out: where the tiles go; new memory by default.

    Returns:
        uint8 [tiles, tile_size, tile_size, 3], row by row, the thumbnail last.
    """
    size = (tile_size, tile_size)
    cells = 1 if grid is None else grid[0] * grid[1]
    count = cells + int(thumbnail and cells > 1)
    tiles = np.empty((count, *size, 3), dtype=np.uint8) if out is None else out
    assert tiles.shape == (count, *size, 3)
    if augment is not None:
        parts = [image] if grid is None else _cells(image, grid, tile_size)
        parts += [image.resize(size, Image.Resampling.BICUBIC)] * (count - cells)
        for number, part in enumerate(parts):
            tiles[number] = np.asarray(augment(part, number).resize(size, Image.Resampling.BICUBIC))
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


def jpeg_augment(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after a trip through JPEG at the given quality."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    with foreign.open_image(stream.getvalue(), DataError) as opened:
        return opened.convert("RGB")


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Centre an image on a square of the normalisation's mean colour."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
