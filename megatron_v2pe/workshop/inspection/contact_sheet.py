"""The tiles of a pack as one picture: every image as the grid it is cut into, its thumbnail apart, with labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.types import Picture, TrainingDocument
from megatron_v2pe.errors import DataError
from megatron_v2pe.workshop.inspection.views import DocumentView, ImageView, PackView, as_tiling

_log = get_logger(__name__)

TILE = 112
"""Most pixels a side of a tile is drawn at."""
WIDTH = 1600
"""Width of the sheet in pixels."""
_GAP, _APART, _MARGIN, _LEAST_BLOCK, _LEAST_SECTION = 2, 10, 16, 190, 510
_INNER = WIDTH - 2 * _MARGIN
_LINE, _TITLE_LINE = 16, 20
"""Heights of lines of small and large text."""
_PAPER, _INK, _FAINT, _RULE, _LEARNED, _ALARM = "white", "black", "#666666", "#c8c8c8", "#00695c", "#b00020"
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf")
"""Looked for on the system, in order; else that of matplotlib is taken. What a font lacks is drawn as boxes."""

_Label = tuple[str, int, str]
"""A line of text, its height, its colour."""


def contact_sheet(
    view: PackView,
    documents: Sequence[TrainingDocument],
    tile_size: int,
    mean: Sequence[float],
    open_picture: Callable[[Picture], Image.Image] | None = None,
    max_tiles: int = 600,
) -> Image.Image:
    """Draw the tiles of a pack as a model gets them, augmented but not yet normalised.

    Args:
        view: the pack.
        documents: the documents of the view.
        tile_size: side of a tile in pixels; drawn at `TILE` at most.
        mean: mean colour of the normalisation, see `read_tiles`.
        open_picture: reads an image other than from its path, see `read_tiles`.
        max_tiles: most tiles drawn; whole images are left away beyond, and counted in the last line.

    Returns:
        RGB, `WIDTH` wide. Where an image cannot be read, the error stands in place of its document's tiles.
    """
    parts = [_text([(view.title, _TITLE_LINE, _INK)], _INNER)]
    room, undrawn = max_tiles, 0
    for number, (described, document) in enumerate(zip(view.documents, documents, strict=True), 1):
        pictures = _fitting(document.pictures, room)
        drawn = sum(picture.num_tiles for picture in pictures)
        room, undrawn = room - drawn, undrawn + described.tiles - drawn
        if not pictures:
            continue
        labels = list(_labels(described, number))
        try:
            tiles = read_tiles(pictures, tile_size, mean, document.key, open_picture).numpy()
            images = _flow(list(_blocks(described.images, tiles)), _MARGIN)
        except DataError as error:
            _log.warning("document %d, %s:%d, cannot be used: %s", number, described.dataset, described.line, error)
            images, undrawn = _text([(str(error), _LINE, _ALARM)], _INNER), undrawn + drawn
        parts.append(_column([_text(labels, max(images.width, _LEAST_SECTION)), images]))
    parts.append(_text([(_closing(view, undrawn), _LINE, _FAINT)], _INNER))
    content = _flow(parts, _MARGIN)
    sheet = Image.new("RGB", (WIDTH, content.height + 2 * _MARGIN), _PAPER)
    sheet.paste(content, (_MARGIN, _MARGIN))
    return sheet


def _flow(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    """Put pictures side by side like words, in lines of at most `_INNER` pixels."""
    lines: list[list[Image.Image]] = []
    used = _INNER
    for part in parts:
        if used + gap + part.width > _INNER:
            lines.append([])
            used = -gap
        lines[-1].append(part)
        used += gap + part.width
    rows = []
    for line in lines:
        width = sum(part.width for part in line) + gap * (len(line) - 1)
        row = Image.new("RGB", (width, max(part.height for part in line) + gap), _PAPER)
        x = 0
        for part in line:
            row.paste(part, (x, 0))
            x += part.width + gap
        rows.append(row)
    return _column(rows)


def _column(parts: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below one another."""
    column = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), _PAPER)
    y = 0
    for part in parts:
        column.paste(part, (0, y))
        y += part.height
    return column


def _text(lines: Sequence[_Label], width: int) -> Image.Image:
    """Write lines, each cut to the width."""
    picture = Image.new("RGB", (width, sum(height for _, height, _ in lines)), _PAPER)
    draw = ImageDraw.Draw(picture)
    y = 0
    for text, height, colour in lines:
        draw.text((0, y), _cut(text, _font(height), width), colour, _font(height))
        y += height
    return picture


def _fitting(pictures: Sequence[Picture], room: int) -> list[Picture]:
    """Return the first pictures, as many as `room` tiles hold."""
    kept: list[Picture] = []
    for picture in pictures:
        room -= picture.num_tiles
        if room < 0:
            break
        kept.append(picture)
    return kept


def _labels(view: DocumentView, number: int) -> Iterator[_Label]:
    yield f"document {number}: {view.dataset}:{view.line}", _TITLE_LINE, _INK
    for question, answer in view.exchanges[:1]:
        first = f" first of {len(view.exchanges)}" if len(view.exchanges) > 1 else ""
        yield f"asked{first}: {question}", _LINE, _INK
        yield f"learned: {answer}", _LINE, _LEARNED


def _closing(view: PackView, undrawn: int) -> str:
    drawn = view.totals.tiles - undrawn
    without = sum(not document.images for document in view.documents)
    text = f"{drawn:,} of {view.totals.tiles:,} tiles drawn"
    if undrawn:
        text += f"; {undrawn:,} more are left away"
    return text + (f"; {without:,} documents have no images" if without else "")


def _blocks(images: Sequence[ImageView], tiles: np.ndarray) -> Iterator[Image.Image]:
    """Yield a picture per image, of as many images as there are tiles of."""
    start = 0
    for image in images:
        if start == len(tiles):
            return
        yield _block(image, tiles[start : start + image.tiles])
        start += image.tiles


def _block(image: ImageView, tiles: np.ndarray) -> Image.Image:
    """Draw one image: its label, the grid, and the thumbnail to the right of it."""
    columns, rows = image.grid or (1, 1)
    side = min(TILE, tiles.shape[1], (_INNER - _APART) // (columns + image.thumbnail) - _GAP)
    step, grid = side + _GAP, columns * (side + _GAP) - _GAP
    cells = Image.new("RGB", (grid + image.thumbnail * (_APART + side), rows * step), _PAPER)
    cells.paste(_RULE, (0, 0, grid, rows * step - _GAP))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        place = (grid + _APART, 0) if number == columns * rows else (column * step, row * step)
        cells.paste(Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC), place)
    frame = "" if image.frame is None else f", frame {image.frame}"
    labels = [
        (f"image {image.number}: {as_tiling(image)}, stride {image.stride}", _LINE, _INK),
        (os.path.basename(image.path) + frame, _LINE, _FAINT),
    ]
    return _column([_text(labels, max(cells.width, _LEAST_BLOCK)), cells])


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return text on one line of at most `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text[:WIDTH]) <= width:
        return text
    low, high = 0, min(len(text), WIDTH)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "...") <= width else (low, middle - 1)
    return text[:low] + "..."


@cache
def _font(line: int) -> ImageFont.FreeTypeFont:
    """Return the font of lines of a height."""
    import matplotlib  # not needed before something is drawn

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in (*_FONTS, str(own)):
        try:
            return ImageFont.truetype(name, line - 4)
        except OSError:
            continue
    raise DataError(f"{own}: no such font")
