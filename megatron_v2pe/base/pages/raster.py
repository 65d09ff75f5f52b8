"""Figures as one PNG: several beside each other, with their titles and legends, on white."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from megatron_v2pe.base.pages.charts import (
    HEIGHT,
    WIDTH,
    Bars,
    Box,
    Chart,
    Dot,
    Shape,
    Stroke,
    colour_of,
    layout_bars,
    layout_chart,
)

PALETTE = {
    "ink": "#1b1f24",
    "quiet": "#5c6570",
    "rule": "#dfe3e8",
    "c0": "#2563c9",
    "c1": "#d9600a",
    "c2": "#1a8754",
    "c3": "#b3267e",
    "c4": "#7a5cd6",
    "c5": "#8a6d00",
    "c6": "#00838f",
    "c7": "#b0202e",
}
"""What the names of colours look like on white."""
_FINE = 2
"""Drawn so many times as large, and made smaller."""
_SCALE = 1.25
_HEAD, _LEGEND, _GAP, _TITLE = 22, 16, 18, 54


def draw_png(title: str, subtitle: str, figures: Sequence[Chart | Bars], path: Path, columns: int = 3) -> None:
    """Draw figures that are not empty, in lines of `columns`.

    Raises:
        OSError: the file cannot be written.
    """
    columns = max(min(columns, len(figures)), 1)
    rows = -(-len(figures) // columns)
    cell = WIDTH + _GAP, HEIGHT + _HEAD + _LEGEND + _GAP
    size = (columns * cell[0] + _GAP, rows * cell[1] + _TITLE + _GAP)
    unit = _FINE * _SCALE
    sheet = Image.new("RGB", (round(size[0] * unit), round(size[1] * unit)), "white")
    pen = _Pen(ImageDraw.Draw(sheet), unit)
    pen.text((_GAP, 28), title, 19, "ink")
    pen.text((_GAP, 47), subtitle, 12, "quiet")
    for number, figure in enumerate(figures):
        row, column = divmod(number, columns)
        pen.go_to(_GAP + column * cell[0], _TITLE + row * cell[1])
        pen.text((0, 15), figure.title, 13, "ink")
        _legend(pen, figure)
        pen.go_to(_GAP + column * cell[0], _TITLE + row * cell[1] + _HEAD + _LEGEND)
        for shape in layout_chart(figure) if isinstance(figure, Chart) else layout_bars(figure):
            pen.draw(shape)
    small = sheet.resize((sheet.width // _FINE, sheet.height // _FINE), Image.Resampling.LANCZOS)
    small.quantize(128, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _legend(pen: _Pen, figure: Chart | Bars) -> None:
    if isinstance(figure, Chart):
        names = [(one.name, colour_of(one.colour)) for one in figure.named]
    else:
        names = [(name, colour_of(number)) for number, (name, _) in enumerate(figure.groups)]
    if len(names) < 2:
        return
    place = 0.0
    for name, colour in names:
        width = 16 + pen.width(name, 10) + 12
        if place + width > WIDTH:
            pen.text((place, 32), "…", 10, "quiet")
            return
        pen.box((place, 24, 10, 8), colour)
        pen.text((place + 14, 32), name, 10, "quiet")
        place += width


class _Pen:
    """Draws shapes, in units of a figure from where it went to."""

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float) -> None:
        self._draw, self._unit, self._origin = draw, unit, (0.0, 0.0)

    def go_to(self, x: float, y: float) -> None:
        self._origin = (x, y)

    def width(self, text: str, size: float) -> float:
        return _font(round(size * self._unit)).getlength(text) / self._unit

    def box(self, place: tuple[float, float, float, float], colour: str) -> None:
        x, y, width, height = place
        corners = [self._at((x, y)), self._at((x + width, y + max(height, 0)))]
        self._draw.rectangle(corners, fill=PALETTE[colour])

    def text(self, place: tuple[float, float], text: str, size: float, colour: str, anchor: str = "ls") -> None:
        self._draw.text(self._at(place), text, PALETTE[colour], _font(round(size * self._unit)), anchor)

    def draw(self, shape: Shape) -> None:
        if isinstance(shape, Stroke):
            self._stroke(shape)
        elif isinstance(shape, Box):
            self.box(shape.place, shape.colour)
        elif isinstance(shape, Dot):
            x, y = self._at(shape.place)
            radius = shape.radius * self._unit
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=PALETTE[shape.colour])
        elif shape.upright:
            self._upright(shape.place, shape.text, shape.size, shape.colour)
        else:
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            self.text(shape.place, shape.text, shape.size, shape.colour, anchor)

    def _stroke(self, stroke: Stroke) -> None:
        points = [self._at(point) for point in stroke.points]
        colour = _paler(PALETTE[stroke.colour]) if stroke.faint else PALETTE[stroke.colour]
        width = max(round(stroke.width * self._unit), 1)
        if not stroke.dashed:
            self._draw.line(points, fill=colour, width=width, joint="curve")
            return
        (x0, y0), (x1, y1) = points[0], points[-1]
        length = max(abs(x1 - x0), abs(y1 - y0)) or 1
        dash = 4 * self._unit
        for number in range(int(length / dash / 2) + 1):
            begin, end = (min((2 * number + more) * dash / length, 1.0) for more in (0, 1))
            ends = [(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share) for share in (begin, end)]
            self._draw.line(ends, fill=colour, width=width)

    def _upright(self, place: tuple[float, float], text: str, size: float, colour: str) -> None:
        font = _font(round(size * self._unit))
        left, top, right, bottom = (int(value) for value in font.getbbox(text))
        words = Image.new("L", (right - left + 2, bottom - top + 2))
        ImageDraw.Draw(words).text((-left, -top), text, 255, font)
        turned = words.rotate(90, expand=True)
        x, y = self._at(place)
        self._draw.bitmap((round(x - turned.width), round(y - turned.height / 2)), turned, fill=PALETTE[colour])

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        return (point[0] + self._origin[0]) * self._unit, (point[1] + self._origin[1]) * self._unit


def _paler(colour: str) -> str:
    """Return a colour with a third of its strength, on white."""
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * 0.35):02x}" for part in parts)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, so that a picture is the same on every machine."""
    return ImageFont.load_default(size)
