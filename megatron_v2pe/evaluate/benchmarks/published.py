"""What the published benchmarks have in common: checked ids and placeholders, counts compared, items out of facts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.benchmarks.wording import IMAGE
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.foreign.printable import printable

logger = get_logger(__name__)

Mode = Literal["corrected", "reference"]
"""Of asking, where the published way has a defect: `reference` keeps it. A file's docstring says what it is."""
FAMILY_TILES = 6
"""Most tiles of an image in the general benchmarks, unless stated (`--max-num` of the published script)."""


class PublishedBenchmark(Benchmark):
    """A benchmark read from its published files."""

    item_fields: tuple[str, ...] = ("answers",)
    """Facts that the scorer reads beside `prediction`; those a question lacks are left out."""

    def __init__(self, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose how it asks.

        Args:
            mode: see `Mode`.
            cache: folder for images that stand inside of other files.

        Raises:
            ConfigError: unknown mode.
        """
        if mode not in ("corrected", "reference"):
            raise ConfigError(f"mode {mode!r}: it is 'corrected' or 'reference'")
        self.mode = mode
        self.cache = cache

    @abstractmethod
    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield questions, each with the place in a file it comes from."""

    def questions(self, root: Path) -> Iterator[Question]:
        """Yield its questions; see `Benchmark`."""
        places: dict[str, str] = {}
        try:
            for where, question in self.read(root):
                if question.id in places:
                    raise DataError(f"{where}: id {question.id} was used before, at {places[question.id]}")
                places[question.id] = where
                _check_images(where, question)
                _check_texts(where, question)
                yield question
        except DataError as error:  # fields of the files stand in it
            raise DataError(printable(error, lines=True)) from error
        if self.published is not None and len(places) != self.published:
            logger.warning("%s: %d questions; the published file has %d", self.name, len(places), self.published)

    def item(self, question: Question, answer: str) -> Mapping[str, Any]:
        """Return `prediction` and the facts the scorer reads."""
        facts = {field: question.facts[field] for field in self.item_fields if field in question.facts}
        return {"prediction": answer, **facts}


def _check_images(where: str, question: Question) -> None:
    """Refuse a question whose placeholders and images differ in number."""
    places = sum(text.count(IMAGE) for _, text in question.turns)
    expected = 1 if question.joined else len(question.images)
    if places != expected:
        raise DataError(f"{where}: {places} {IMAGE} in the text, but {expected} images")


def _check_texts(where: str, question: Question) -> None:
    """Refuse half surrogate pairs, which JSON can hold: they are no text, and no tokenizer and no file takes them."""
    for text in (question.id, *(text for _, text in question.turns), *(image.path for image in question.images)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = ord(text[error.start])
            raise DataError(f"{where}: {printable(text)[:60]!r} holds half a character, U+{found:04X}") from error


def asked(text: str) -> tuple[tuple[str, str], ...]:
    """Return the turns of a single question."""
    return (("human", text),)
