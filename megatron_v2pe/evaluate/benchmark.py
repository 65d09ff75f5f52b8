"""What a benchmark is: questions read from its published files, an answer put beside each, scored items out of both.

A family of benchmarks is a folder of `families/`; its README.md says how to obtain the data and what the layout is. A
benchmark knows nothing of models: it gives questions, and turns answers into what its scorer reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError, DataError, how_to_install
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.foreign.printable import printable

logger = get_logger(__name__)

Mode = Literal["corrected", "reference"]
"""How a benchmark asks where the published way has a defect: `reference` keeps it. The family's README.md names it."""
IMAGE = "<image>"
"""Stands where an image goes."""
FAMILY_TILES = 6
"""Most tiles of an image in the general benchmarks, unless stated (`--max-num` of the published script)."""


@dataclass(frozen=True)
class ImageRef:
    """An image of a question: a file, or a frame of a video."""

    path: str
    """Its path as it was found: relative to the folder evaluation was started in, or absolute."""
    frame: int | None = None
    """Which frame of a video file or animation."""
    max_tiles: int | None = None
    """Most tiles of this image; None: the benchmark's."""
    enlarge: int = 1
    """Its sides are multiplied by this, bilinear, before it is tiled."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: the turns, the images, and what scoring needs."""

    id: str
    """Unique in its benchmark, the same in every run."""
    turns: tuple[tuple[str, str], ...]
    """(role, text), roles `human` and `gpt` in turn, a question last, or behind it how its answer begins (`BEGUN`);
    `<image>` where an image stands."""
    images: tuple[ImageRef, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs: true answers, category, options; plain JSON."""
    max_new_tokens: int | None = None
    """Overrides the benchmark's."""
    joined: bool = False
    """The tiles of all images stand in one run, where the only `<image>` is."""


@dataclass(frozen=True)
class Needed:
    """A file or folder a benchmark reads."""

    path: str
    """Relative to the folder evaluation is started in; the published README's own."""
    obtain: str
    """What to download from where, in a sentence."""


@dataclass(frozen=True)
class PublishedCount:
    """How many questions the published files of a benchmark have.

    A score over other data than the published ones must never stand beside a published number without a mark. Most
    parts of a benchmark can be distinguished from the whole by the number of their questions alone.
    """

    questions: int
    source: str
    """Who says so."""


class Benchmark(ABC):
    """A benchmark: where its files are, the questions it makes of them, and what its scorer reads."""

    name: str
    """Its name on the command line and in result files; `BENCHMARKS.register` sets it."""
    title: str
    """Its name in tables."""
    scorer: str | None
    """Name of its scorer, see `scorer_names`; None: a server scores the file of `submission`."""
    item_fields: tuple[str, ...] = ("answers",)
    """Facts of a question that the scorer reads beside `prediction`; those a question lacks are left out."""
    published_count: PublishedCount | None = None
    """None: it is not known here, and every score is marked, for nothing tells a part from the whole."""
    published_count_note: str = ""
    """What is known where the number is not."""
    packages: tuple[str, ...] = ("rapidfuzz",)
    """Packages of the `eval` extra that its questions or its scorer import. Scorers of all families are imported
    together, and some compare strings by rapidfuzz: a benchmark that needs more adds to this one."""
    max_new_tokens: int = 100
    min_new_tokens: int = 1
    dynamic_tiling: bool = True
    """Whether images are tiled by their shape; otherwise each is one tile."""
    max_tiles: int | None = None
    """Most tiles of an image; None: the run's, or the checkpoint's."""
    thumbnail: bool | None = None
    """Whether a tiled image is also shown whole; None: as the checkpoint was trained."""
    own: bool = False
    """Whether its questions are the user's, so that none are published."""
    one_length: bool = False
    """Whether it is a set of needles in contexts of one length, which the published report does not know: its number is
    the mean over the fifths of depth that have samples (`judging`)."""

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

    @property
    def published(self) -> int | None:
        """Return how many questions the published files have; None: that is not known, or they are the user's own."""
        return None if self.own or self.published_count is None else self.published_count.questions

    @property
    @abstractmethod
    def needed(self) -> Sequence[Needed]:
        """Return the files and folders it reads."""

    @abstractmethod
    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield questions, each with the place in a file it comes from (`file:line`), for `questions`.

        They come in the order the published evaluation asks them, file order where it has none.

        Args:
            root: folder the paths of `needed` are relative to.

        Raises:
            DataError: a file is damaged or of another version; names file and line.
        """

    def questions(self, root: Path) -> Iterator[Question]:
        """Yield what `read` yields: ids, placeholders and texts checked, the number compared with the published one.

        Args:
            root: folder the paths of `needed` are relative to.

        Raises:
            DataError: a file is damaged or of another version; names file and line.
        """
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
        """Return what the scorer reads of an answered question: `prediction`, and the facts of `item_fields`."""
        facts = {field: question.facts[field] for field in self.item_fields if field in question.facts}
        return {"prediction": answer, **facts}

    def submission(self, root: Path, answers: Sequence[tuple[Question, str]], out: Path) -> Path | None:
        """Write the file a server wants where it does the scoring.

        Args:
            root: folder the paths of `needed` are relative to.
            answers: every question with what was answered.
            out: folder to write into; made if it is not there.

        Returns:
            The file; None: the benchmark is scored here.
        """
        return None

    def check(self, root: Path) -> None:
        """Check that its data are there.

        Raises:
            DataError: something is missing; says what to download and where it goes.
        """
        missing = [needed for needed in self.needed if not (root / needed.path).exists()]
        if missing:
            lines = "\n".join(f"  {root / needed.path}: {needed.obtain}" for needed in missing)
            raise DataError(f"{self.name}: data are missing:\n{lines}")


def check_packages(benchmarks: Sequence[Benchmark]) -> None:
    """Check that the packages these benchmarks need are installed, before hours are spent on answers.

    Raises:
        ConfigError: packages are missing; names them and the extra they belong to.
    """
    needed = dict.fromkeys(name for benchmark in benchmarks for name in benchmark.packages)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(f"scoring needs {', '.join(missing)}: {how_to_install('eval')}")


def check_all(benchmarks: Sequence[Benchmark], root: Path) -> None:
    """Check the packages and the data of all benchmarks.

    Raises:
        ConfigError: see `check_packages`.
        DataError: data are missing; lists those of every benchmark, with what to download and where it goes.
    """
    check_packages(benchmarks)
    problems: list[str] = []
    for benchmark in benchmarks:
        try:
            benchmark.check(root)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))


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


def other_than_published(questions: int, published: int | None) -> str:
    """Return in words that data are not the published ones, by their number; empty where they can be.

    Args:
        questions: of the data.
        published: of the published files; None: not known.
    """
    if published is None or questions == published:
        return ""
    return f"data of {questions} questions, {published} are published"
