"""Whether training could use a sample: the very steps of training up to its tokens, as far as what is known allows.

Without a tokenizer, stretches of text stand in for tokens: placeholders, turns and marks are checked, lengths are not.
Where files are not looked at, or cannot be read (which is reported for the file itself), images do not count for the
budgets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.conversation import TEMPLATES, get_template
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_files import image_size
from megatron_v2pe.data.image_plan import LineKey, TilingOptions, plan_video
from megatron_v2pe.data.special_tokens import SpecialTokens
from megatron_v2pe.data.tokenizer import BOS, EOS, NEEDED, Tokenizer
from megatron_v2pe.data.types import Clip, Sample
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.settings import StridePolicy

_TILE_SIZE, _TOKENS_PER_TILE = 448, 256
_ANY_LENGTH, _ANY_TILES = 1 << 62, 1 << 62


class Marks(Tokenizer):
    """Stands in where no tokenizer is at hand: each mark is a token, all text between two marks is another."""

    def __init__(self) -> None:
        """Collect the marks of images and of all templates."""
        texts = [text for entry in map(get_template, TEMPLATES) for text in (entry.user, entry.assistant, entry.end)]
        marks = [mark for text in texts for mark in re.findall(r"<\|\w+\|>", text)]
        self.special = {name: number for number, name in enumerate(dict.fromkeys([BOS, EOS, *NEEDED, *marks]))}
        self.model_file = "no tokenizer"
        self.bos_id, self.eos_id = self.special[BOS], self.special[EOS]
        self.before = (self.special[BOS],)
        self._cut = SpecialTokens(self.special)

    def __reduce__(self) -> tuple[type[Marks], tuple[()]]:
        """Make another one in another process."""
        return Marks, ()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; what lies between two marks is one token."""
        return self._cut.encode(text, lambda _: [len(self.special)])


@dataclass(frozen=True)
class SampleChecker:
    """Finds why training would refuse a sample, apart from faults of its files."""

    encoder: DocumentEncoder
    lengths: bool
    """Whether tokenizer and settings are those of a run: its budgets hold then."""
    reads_files: bool
    """Whether headers of images and videos are read."""

    @classmethod
    def of_text(cls, config: DataConfig | None = None, reads_files: bool = False) -> SampleChecker:
        """Return a checker without a tokenizer, which does not check lengths."""
        config = config or DataConfig()
        facts = ModelFacts(config.force_image_size or _TILE_SIZE, _TOKENS_PER_TILE)
        return cls(DocumentEncoder(config, Marks(), facts, StridePolicy("default"), 0), False, reads_files)

    def problem(self, dataset: Dataset, sample: Sample) -> str | None:
        """Return why a sample cannot be used, None where nothing was found; files have faults of their own."""
        files = _Files(self.reads_files, self.encoder.facts.tile_size)
        try:
            if self.lengths:
                self.encoder.encode_sample(sample, dataset, files.size_of, files.clip_of)
                return None
        except DataError as error:
            if not files.guessed:
                return str(error)
        if any(operation.resizes for operation in self.encoder.tiling(dataset).operations):  # would read files
            dataset = replace(dataset, exif_rotation=False, image_operations=())
        try:
            self._unbounded.encode_sample(sample, dataset, files.size_of, files.clip_of)
        except DataError as error:
            return str(error)
        return None

    @cached_property
    def _unbounded(self) -> DocumentEncoder:
        config = replace(self.encoder.config, max_seq_length=_ANY_LENGTH, num_images_expected=_ANY_TILES)
        return replace(self.encoder, config=config)


@lru_cache(maxsize=1 << 14)
def _size_or_none(path: str) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except DataError:
        return None


@dataclass
class _Files:
    """Sizes of images and videos, guessed where they are not to be read or cannot be."""

    read: bool
    side: int
    guessed: bool = False

    def size_of(self, path: str) -> tuple[int, int]:
        size = _size_or_none(path) if self.read else None
        self.guessed |= size is None
        return size or (self.side, self.side)

    def clip_of(
        self, path: str, clip: tuple[float, float] | None, least: int, most: int, options: TilingOptions, key: LineKey
    ) -> Clip:
        if self.read:
            try:
                plan_video(path, None, least, most, options, key)
            except DataError:  # the file's fault, not the sample's
                pass
            else:
                return plan_video(path, clip, least, most, options, key)
        self.guessed = True
        return Clip(path, frames=least, first=0, last=least)


_checker: SampleChecker | None = None


def start(checker: SampleChecker | None) -> None:
    """Set up a worker process."""
    global _checker
    _checker = checker


def current() -> SampleChecker | None:
    """Return what this process checks samples with."""
    return _checker
