"""What a benchmark is: questions read from its published files, an answer put beside each, scored items out of both.

One file of `benchmarks/` is one benchmark; its docstring says how to obtain the data and what the layout is. A
benchmark knows nothing of models: it gives questions, and turns answers into what its scorer reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.published_counts import questions_published


@dataclass(frozen=True)
class ImageRef:
    """An image of a question: a file, or a frame of a video."""

    path: str
    """As found: relative to the folder evaluation was started in, or absolute."""
    frame: int | None = None
    """Which frame of a video file or animation."""
    max_tiles: int | None = None
    """Most tiles of this image; None: the benchmark's."""
    enlarge: int = 1
    """Its sides are multiplied by this, bilinear, before it is tiled."""


@dataclass(frozen=True)
class Question:
    """One thing to be asked."""

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


class Benchmark(ABC):
    """A benchmark."""

    name: str
    """As on the command line and in result files."""
    title: str
    """As in tables."""
    scorer: str | None
    """Name of its scorer, see `scorers`; None: a server scores the file of `submission`."""
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

    @property
    def published(self) -> int | None:
        """Return how many questions the published files have; None: that is not known, or they are the user's own."""
        return None if self.own else questions_published(self.name)

    @property
    @abstractmethod
    def needed(self) -> Sequence[Needed]:
        """Return the files and folders it reads."""

    @abstractmethod
    def questions(self, root: Path) -> Iterator[Question]:
        """Yield its questions in the order the published evaluation asks them, file order where it has none.

        Args:
            root: folder the paths of `needed` are relative to.

        Raises:
            DataError: a file is damaged or of another version; names file and line.
        """

    @abstractmethod
    def item(self, question: Question, answer: str) -> Mapping[str, Any]:
        """Return what the scorer reads of an answered question."""

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
