"""Pictures of coloured shapes, videos and files of every kind that made-up sets consist of, drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.errors import DataError, how_to_install

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle")
LETTERS = "ABCDE"


@dataclass(frozen=True)
class Drawn:
    """A picture and what it shows."""

    image: Image.Image
    colour: str
    shape: str


class Maker:
    """Draws pictures and writes files below a folder, the same for the same seed and name."""

    def __init__(self, root: Path, seed: int, name: str, questions: int, parquet: bool) -> None:
        """Start on one benchmark.

        Args:
            root: folder the published paths are relative to.
            seed: of all draws.
            name: of the benchmark.
            questions: of each of its files.
            parquet: whether files that are published as Parquet are written so.
        """
        self.root, self.seed, self.name, self.questions, self.parquet = root, seed, name, questions, parquet
        self.random = Random(seed_of(seed, name, purpose="synthetic"))

    def named(self, name: str) -> Maker:
        """Return a maker with draws of its own."""
        return Maker(self.root, self.seed, name, self.questions, self.parquet)

    def draw(self, colour: str | None = None) -> Drawn:
        """Return a picture of a coloured shape."""
        width, height = self.random.randrange(48, 160), self.random.randrange(48, 120)
        colour, shape = colour or self.random.choice(COLOURS), self.random.choice(SHAPES)
        image = Image.new("RGB", (width, height), "white")
        draw, box = ImageDraw.Draw(image), (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=colour)
        return Drawn(image, colour, shape)

    def picture(self, path: str, colour: str | None = None) -> Drawn:
        """Write a picture; return what it shows."""
        drawn = self.draw(colour)
        drawn.image.save(self.file(path))
        return drawn

    def choices(self, answer: str, number: int = 4) -> list[str]:
        """Return so many colours in a drawn order, one of which is the answer."""
        others = self.random.sample([colour for colour in COLOURS if colour != answer], number - 1)
        return self.random.sample([answer, *others], number)

    def file(self, path: str) -> Path:
        """Return a path below the root whose folder is there."""
        found = self.root / path
        found.parent.mkdir(parents=True, exist_ok=True)
        return found

    def lines(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write JSON lines."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file(path).write_text(text, encoding="utf-8")

    def json(self, path: str, content: Any) -> None:
        """Write JSON."""
        self.file(path).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")

    def table(self, path: str, rows: Sequence[Mapping[str, Any]], images: Sequence[str] = ()) -> None:
        """Write Parquet; columns of images are `bytes` and `path`, as the `datasets` library stores them."""
        import pyarrow
        from pyarrow import parquet

        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        columns = {
            name: pyarrow.array([row[name] for row in rows], type=image if name in images else None) for name in rows[0]
        }
        parquet.write_table(pyarrow.table(columns), self.file(path))

    def video(self, path: str, frames: int = 40, rate: int = 10) -> None:
        """Write a video whose shape changes its colour."""
        try:
            import av
        except ImportError:
            raise DataError(f"{path}: video files need PyAV: {how_to_install('video')}") from None
        with av.open(str(self.file(path)), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                image = Image.new("RGB", (64, 48), COLOURS[number * len(COLOURS) // frames])
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)


Writer: TypeAlias = Callable[[Maker], None]
"""Writes one benchmark, that of the maker's name."""
