"""The two forms of a Long-VQA sample: every image by itself, or several pasted into one.

The published data set has both, as folders `long_vqa/image` and `long_vqa/paste`; how it words a question is not
published. Here images are numbered as InternVL2 numbers several (`Image-1: <image>`), and a question names its image,
in the paste form also row and column of the picture within it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.workshop.long_context.budget import TokenBudget
from megatron_v2pe.workshop.long_context.draws import Draws
from megatron_v2pe.workshop.long_context.image_pool import ImagePool
from megatron_v2pe.workshop.long_context.made_images import Canvas, Shown, Size
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER

_LOOKED_AT = 64


@dataclass(frozen=True)
class ImagePlace:
    """Where an image that is asked about stands."""

    image: int
    """Number of the image, from 1."""
    row: int | None = None
    """Row of the picture within it, from 1; paste form only."""
    column: int | None = None

    def reference(self) -> str:
        """Return the words that name it."""
        if self.row is None:
            return f"Image-{self.image}"
        return f"the picture in row {self.row}, column {self.column} of Image-{self.image}"

    def fields(self) -> dict[str, int]:
        """Return its numbers by name."""
        numbers = {"image": self.image, "row": self.row, "column": self.column}
        return {name: number for name, number in numbers.items() if number is not None}


@dataclass(frozen=True)
class Unit:
    """One image of a sample, before it has a place."""

    cost: int
    """Its tokens, without its number."""
    path: str = ""
    """Image form: the image."""
    columns: int = 0
    """Paste form: of its grid."""
    rows: int = 0


@dataclass(frozen=True)
class Request:
    """What one sample asks of a form."""

    pool: ImagePool
    draws: Draws
    asked: tuple[str, ...]
    """Images that are asked about, each once."""
    room: int
    """Tokens there are for images and their numbers."""
    reuse_images: bool
    folder: str
    """Where images are made, relative to the folder that is written."""

    def others(self) -> Iterator[str]:
        """Yield images that are not asked about, in an order drawn for the sample."""
        return self.pool.shuffled(self.draws, set(self.asked), self.reuse_images)


class Form(Protocol):
    """Fills a sample with images."""

    name: str

    def units(self, request: Request) -> list[Unit]:
        """Return images that fill the room as far as whole images do; those asked about come first.

        Raises:
            DataError: there are too few.
        """
        ...

    def fewest(self, request: Request) -> int:
        """Return the units a sample cannot do without."""
        ...

    def arrange(self, units: Sequence[Unit], request: Request) -> tuple[list[Shown], list[ImagePlace]]:
        """Put units in order; return them, and the place of each image that is asked about."""
        ...


def number_line(number: int) -> str:
    """Return the line of one image."""
    return f"Image-{number}: {PLACEHOLDER}"


class ImageForm:
    """Every image by itself."""

    name = "image"

    def __init__(self, budget: TokenBudget) -> None:
        """Count tokens by `budget`."""
        self._budget = budget

    def units(self, request: Request) -> list[Unit]:
        """Return the asked images and others, while they fit; then of the next ones those that fit into what is left.

        Raises:
            DataError: the annotation has too few images.
        """
        units = [self._unit(path, request.pool) for path in request.asked]
        left = request.room - sum(unit.cost + self._label(number) for number, unit in enumerate(units, 1))
        others, exhausted = request.others(), True
        for path in others:
            unit = self._unit(path, request.pool)
            if unit.cost + self._label(len(units) + 1) > left:
                exhausted = False
                break
            left -= unit.cost + self._label(len(units) + 1)
            units.append(unit)
        if exhausted and left > max(unit.cost for unit in units):
            raise DataError(
                f"{request.pool.describe()}: its {len(units)} images give {request.room - left} of "
                f"{request.room} tokens; lower the target, add images or allow --reuse-images"
            )
        looked_at = [self._unit(path, request.pool) for path in islice(others, _LOOKED_AT)]
        for unit in sorted(looked_at, key=lambda unit: -unit.cost):
            if unit.cost + self._label(len(units) + 1) <= left:
                left -= unit.cost + self._label(len(units) + 1)
                units.append(unit)
        return units

    def fewest(self, request: Request) -> int:
        """Return the number of images that are asked about."""
        return len(request.asked)

    def arrange(self, units: Sequence[Unit], request: Request) -> tuple[list[Shown], list[ImagePlace]]:
        """Shuffle the images."""
        order = request.draws.order(len(units), "places", len(units))
        paths = [""] * len(units)
        for unit, position in zip(units, order, strict=True):
            paths[position] = unit.path
        shown = [Shown(path, request.pool.size(path)) for path in paths]
        return shown, [ImagePlace(position + 1) for position in order[: len(request.asked)]]

    def _unit(self, path: str, pool: ImagePool) -> Unit:
        return Unit(self._budget.image(self._budget.encoding.tiles(pool.size(path))), path)

    def _label(self, number: int) -> int:
        return self._budget.text(f"\nImage-{number}: ")


class PasteForm:
    """Several images on one canvas: a grid of square cells, each image as large as its cell allows, black around it.

    A canvas of 3 x 3 cells of a tile each becomes 9 tiles and a thumbnail: every picture keeps a tile of its own.
    """

    name = "paste"

    def __init__(self, budget: TokenBudget, columns: int, rows: int, cell: int) -> None:
        """Paste onto canvases of so many columns and rows, with cells of `cell` pixels."""
        self._budget, self.columns, self.rows, self.cell = budget, columns, rows, cell

    @classmethod
    def parse(cls, budget: TokenBudget, grid: str, cell: int) -> PasteForm:
        """Read a grid such as `3x2`: columns and rows.

        Raises:
            ConfigError: something else, or a cell of no pixels.
        """
        match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", grid)
        if match is None or cell < 1:
            raise ConfigError(
                f"paste grid {grid!r}, cells of {cell} pixels: expected columns x rows, 3x3, and 1 or more"
            )
        return cls(budget, int(match[1]), int(match[2]), cell)

    def units(self, request: Request) -> list[Unit]:
        """Return whole canvases while they fit, and last the one that fills most of what is left.

        Raises:
            DataError: no room for the images that are asked about, or the annotation has fewer images than cells.
        """
        full, left, units = self._unit(self.columns, self.rows), request.room, list[Unit]()
        while (cost := full.cost + self._label(len(units) + 1)) <= left:
            units.append(full)
            left -= cost
        smaller = [self._unit(c, r) for r in range(1, self.rows + 1) for c in range(1, self.columns + 1)]
        fitting = [unit for unit in smaller if unit.cost + self._label(len(units) + 1) <= left]
        if fitting:
            units.append(max(fitting, key=lambda unit: (unit.cost, unit.columns * unit.rows)))
        cells = sum(unit.columns * unit.rows for unit in units)
        images = len(request.pool.images)
        if cells < len(request.asked):
            raise DataError(
                f"{request.room} tokens have room for {cells} pictures, {len(request.asked)} are asked about"
            )
        if cells > images and not request.reuse_images:
            raise DataError(
                f"{request.pool.describe()}: {cells} images are needed on {len(units)} canvases of up to "
                f"{self.columns}x{self.rows}, it has {images}; lower the target, add images or allow --reuse-images"
            )
        if cells > len(request.asked) and images == len(request.asked):
            raise DataError(
                f"{request.pool.describe()}: all of its {images} images are asked about, none is left to fill "
                f"{cells} cells; lower --questions or add images"
            )
        return units

    def fewest(self, request: Request) -> int:
        """Return the canvases that hold the images that are asked about."""
        return -(-len(request.asked) // (self.columns * self.rows))

    def arrange(self, units: Sequence[Unit], request: Request) -> tuple[list[Shown], list[ImagePlace]]:
        """Shuffle the images over all cells."""
        cells = [(number, cell) for number, unit in enumerate(units) for cell in range(unit.columns * unit.rows)]
        order = request.draws.order(len(cells), "places", len(cells))
        asked = dict(zip((cells[position] for position in order), request.asked, strict=False))
        others, shown = request.others(), list[Shown]()
        for number, unit in enumerate(units):
            in_grid = range(unit.columns * unit.rows)
            images = tuple(asked.get((number, cell)) or next(others) for cell in in_grid)
            canvas = Canvas(images, unit.columns, self.cell)
            shown.append(Shown(f"{request.folder}_{number + 1}.jpg", canvas.size, canvas))
        places = []
        for position in order[: len(request.asked)]:
            number, cell = cells[position]
            row, column = divmod(cell, units[number].columns)
            places.append(ImagePlace(number + 1, row + 1, column + 1))
        return shown, places

    def _unit(self, columns: int, rows: int) -> Unit:
        size: Size = (columns * self.cell, rows * self.cell)
        return Unit(self._budget.image(self._budget.encoding.tiles(size)), columns=columns, rows=rows)

    def _label(self, number: int) -> int:
        return self._budget.text(f"\nImage-{number}: ")
