"""Small made-up sets in the exact format of every benchmark, so that evaluation runs end to end without a download.

Pictures show one coloured shape each, and questions ask for its colour; a few questions a file. Each family of
benchmarks writes its own sets: its `synthetic.py` states the paths and fields of the published files a second time, so
that tests compare two independent statements, and adds its writers to `SETS`. Here is what they draw and write with.
MMMU and Video-MME are written as Parquet where PyArrow is installed, otherwise as JSON lines; videos need PyAV (the
`video` extra).
"""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.base.plugins import Registry
from megatron_v2pe.errors import DataError, how_to_install

FAMILIES = "megatron_v2pe.evaluate.families"
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
SETS: Registry[Writer] = Registry("made-up set", FAMILIES, "synthetic")
"""A writer for every benchmark, which the families add."""


def write_benchmark(root: Path, name: str, seed: int = 0, questions: int = 4, parquet: bool | None = None) -> None:
    """Write a small set in a benchmark's format.

    Args:
        root: folder the published paths are relative to.
        name: of a benchmark, as the registry has it.
        seed: of all draws.
        questions: of a file, 3 to 5; some benchmarks have a number of their own.
        parquet: write Parquet where that is the published form; None: if PyArrow is installed.

    Raises:
        DataError: no set of that name can be made, or a video is to be written without PyAV.
    """
    writer = SETS.find(name)
    if writer is None:
        raise DataError(f"{name}: there is no made-up set of this benchmark")
    if not 3 <= questions <= 5:
        raise DataError(f"{questions} questions: expected 3 to 5")
    if parquet is None:
        parquet = importlib.util.find_spec("pyarrow") is not None
    writer(Maker(root, seed, name, questions, parquet))


@dataclass(frozen=True)
class QuestionLines:
    """Where a benchmark has its questions about single images, a JSON line each."""

    file: str
    images: str
    """Folder of the images."""
    answers: str = ""
    """File that has the answers; nothing: they are in the lines, or there are none."""
    id: str = "number"
    """What `question_id` is: `number`, or `path` of the image."""


def single_image_lines(
    make: Maker, lines: QuestionLines, ask: Callable[[Maker, Drawn], tuple[str, str]] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the images of a set; return its lines and the answer to each.

    Args:
        make: the maker of the set.
        lines: where they belong.
        ask: returns question and answer about a drawn image; by default its colour is asked for.
    """
    rows: list[dict[str, Any]] = []
    answers: list[str] = []
    shared = make.named(lines.images)  # benchmarks that share a folder of images draw the same ones
    for number in range(make.questions):
        path = f"{lines.images}/{number:03d}.png"
        drawn = shared.picture(path)
        question, answer = ask(shared, drawn) if ask else (colour_question(drawn), drawn.colour)
        rows.append({"image": path, "question": question, "question_id": path if lines.id == "path" else 1000 + number})
        answers.append(answer)
    return rows, answers


def with_answers(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return lines that hold their answers."""
    return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]


def colour_question(drawn: Drawn) -> str:
    """Return the question for the colour of an image's shape."""
    return f"What colour is the {drawn.shape}?"


def png(image: Image.Image) -> bytes:
    """Return the bytes of an image as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
