"""The images of annotations, and their questions about single images: what long samples are put together from."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from megatron_v2pe.base.progress import followed
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.workshop.long_context.draws import Draws
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER, SYSTEM, Dataset, Encoding, Sample, image_size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files of a folder that are taken for images."""
_LARGEST = 1 << 32
"""Bytes of one, at most."""


@dataclass(frozen=True)
class ImageQuestion:
    """One question about one image, and its answer."""

    image: str
    """Absolute path."""
    text: str
    answer: str
    source: str
    """Annotation file and line."""


class ImagePool:
    """Images and questions of one annotation, or of several as if they were one."""

    def __init__(self, datasets: Sequence[Dataset], encoding: Encoding) -> None:
        """Read every line of the annotations once.

        Raises:
            DataError: a line that is no sample; names file and line.
        """
        self.datasets = tuple(datasets)
        self.left_out: Counter[str] = Counter()
        """Lines no question can be made of, by cause."""
        self._lines: list[tuple[int, int]] = []
        images: dict[str, None] = {}
        lines = [(number, line) for number, dataset in enumerate(datasets) for line in range(len(dataset))]
        for place in followed(lines, desc="read annotations", unit="lines"):
            sample = self._read(*place)
            images.update(dict.fromkeys(map(os.path.abspath, sample.images)))
            cause = _unusable(sample, encoding)
            if cause is None:
                self._lines.append(place)
            else:
                self.left_out[cause] += 1
        self.images = list(images)
        """Absolute paths, each once, in the order of the annotation."""
        self._sizes: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._lines)

    def question(self, number: int) -> ImageQuestion:
        """Return a question: the first turn of its line, for later ones may lean on it."""
        sample = self._read(*self._lines[number])
        (_, text), (_, answer) = sample.conversations[:2]
        text = text.replace(f"{PLACEHOLDER}\n", "").replace(PLACEHOLDER, "").strip()
        [image] = sample.images
        return ImageQuestion(os.path.abspath(image), text, answer.strip(), f"{sample.id.file}:{sample.id.line}")

    def size(self, path: str) -> tuple[int, int]:
        """Return width and height of an image, from its header.

        Raises:
            DataError: no such file, or not an image.
        """
        if path not in self._sizes:
            self._sizes[path] = image_size(path)
        return self._sizes[path]

    def shuffled(self, draws: Draws, but: set[str], again: bool) -> Iterator[str]:
        """Yield images in an order drawn for one sample.

        Args:
            draws: of the sample.
            but: images that are not to come.
            again: begin again, in another order, whenever all have come.
        """
        for turn in count():
            some = False
            for index in draws.order(len(self.images), "images", turn):
                if self.images[index] not in but:
                    some = True
                    yield self.images[index]
            if not (some and again):
                return

    def describe(self) -> str:
        """Return the annotations in few words, for errors."""
        more = len(self.datasets) - 1
        return self.datasets[0].annotation + (f" and {more} more" if more else "")

    def _read(self, number: int, line: int) -> Sample:
        dataset = self.datasets[number]
        try:
            return dataset.read(line)
        except DataError as error:
            raise DataError(f"{dataset.id_of(line)}: {error}") from error


def _unusable(sample: Sample, encoding: Encoding) -> str | None:
    """Return why no question about one image can be made of a sample, None where one can."""
    if not sample.images:
        return "video" if sample.video is not None else "text only"
    if sample.multi_image:
        return "a list of images"
    if len(sample.conversations) < 2:
        return "no answer"
    (asking, question), (answering, answer) = sample.conversations[:2]
    if asking == SYSTEM:
        return "a system turn"
    if (asking, answering) != ("human", "gpt"):
        return "turns do not alternate"
    if PLACEHOLDER not in question and any(PLACEHOLDER in text for _, text in sample.conversations):
        return "the image comes in a later turn"
    question = question.replace(PLACEHOLDER, "", 1)
    if encoding.spells_reserved(question) or encoding.spells_reserved(answer):
        return "spells a special token or a placeholder"
    return None if question.strip() and answer.strip() else "an empty question or answer"


def folder_images(folder: Path) -> list[str]:
    """Return the images in a folder by name, as absolute paths, files of the same content once.

    Raises:
        ConfigError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{printable(folder)}: no such folder of images")
    by_content: dict[bytes, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            by_content.setdefault(
                hashlib.sha256(read_bytes(path, ConfigError, _LARGEST)).digest(), os.path.abspath(path)
            )
    if not by_content:
        raise ConfigError(f"{printable(folder)}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return list(by_content.values())
