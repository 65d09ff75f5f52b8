"""Images that long samples need and that exist nowhere yet, as recipes: size known at once, pixels when written.

A sample is planned from sizes alone, so that a million tokens cost no pixels; `write` renders what a plan names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from megatron_v2pe.workshop.long_context.pipeline import open_image

Size = tuple[int, int]
"""Width and height in pixels."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""
_FILLED = 0.9
_RESAMPLING = Image.Resampling.BICUBIC


class Recipe(Protocol):
    """How an image is made."""

    @property
    def size(self) -> Size:
        """Its width and height."""
        ...

    def render(self) -> Image.Image:
        """Make it, in RGB.

        Raises:
            DataError: an image it is made of cannot be read.
        """
        ...


@dataclass(frozen=True)
class Shown:
    """An image of a sample, with how it is made."""

    path: str
    """As the annotation names it: absolute, or relative to the folder that is written."""
    size: Size
    recipe: Recipe | None = None
    """None: the image is there already."""


@dataclass(frozen=True)
class Canvas:
    """Images side by side in a grid of square cells, each as large as its cell allows, on black."""

    images: tuple[str, ...]
    """Row by row, one for each cell."""
    columns: int
    cell: int
    """Side of a cell in pixels."""

    @property
    def size(self) -> Size:
        """Its width and height."""
        return self.columns * self.cell, len(self.images) // self.columns * self.cell

    def render(self) -> Image.Image:
        """Make it, in RGB."""
        canvas = Image.new("RGB", self.size)
        for number, path in enumerate(self.images):
            row, column = divmod(number, self.columns)
            _paste(canvas, open_image(path), (column * self.cell, row * self.cell), (self.cell, self.cell), 1.0)
        return canvas


@dataclass(frozen=True)
class ImagePart:
    """A part of an image, scaled down where it is large."""

    source: str
    box: Box
    """Which part."""
    longest: int
    """Longest side of the result in pixels."""
    hole: bool = False
    """Whether its lower right quarter is black."""

    @property
    def size(self) -> Size:
        """Its width and height."""
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        scale = min(1.0, self.longest / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def render(self) -> Image.Image:
        """Make it, in RGB."""
        image = open_image(self.source).crop(self.box).resize(self.size, _RESAMPLING)
        if self.hole:
            width, height = image.size
            image.paste((0, 0, 0), (width // 2, height // 2, width, height))
        return image


@dataclass(frozen=True)
class Pasted:
    """An image with copies of a smaller one pasted into cells of a grid over it."""

    base: str
    size: Size
    """Size of the base."""
    needle: ImagePart
    cells: tuple[int, ...]
    """Numbers of the cells that hold a copy, counted row by row."""
    grid: int
    """Cells along each side."""

    def render(self) -> Image.Image:
        """Make it, in RGB."""
        image, needle = open_image(self.base), self.needle.render()
        width, height = self.size[0] // self.grid, self.size[1] // self.grid
        for cell in self.cells:
            row, column = divmod(cell, self.grid)
            _paste(image, needle, (column * width, row * height), (width, height), _FILLED)
        return image


def centre(size: Size) -> Box:
    """Return the largest square in the middle of an image."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def lower_right(box: Box) -> Box:
    """Return the lower right quarter of a box."""
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2, box[2], box[3]


def _paste(onto: Image.Image, image: Image.Image, corner: tuple[int, int], room: Size, filled: float) -> None:
    """Paste an image into the middle of a rectangle, scaled to fill it as far as its shape allows."""
    scale = filled * min(room[0] / image.width, room[1] / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    place = corner[0] + (room[0] - size[0]) // 2, corner[1] + (room[1] - size[1]) // 2
    onto.paste(image.resize(size, _RESAMPLING), place)
