"""Data that are validated on: which samples of which sets, the packs they make, and reading one of these.

A pack holds samples of one data set, whose pictures are opened in one way. Which packs there are depends on data and
the settings alone: ranks share them, whatever their number. What training draws anew in every epoch (strides, frames of
videos) is drawn by a fixed key; nothing is augmented.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.hold_out import HoldOut, smallest_draws
from megatron_v2pe.data.image_operations import JpegAugmentation
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.packing.balance import round_robin
from megatron_v2pe.data.packing.planner import PackBudgets, plan_window
from megatron_v2pe.data.types import Batch, Clip, EncodedSample, Picture, SampleId, TrainingDocument
from megatron_v2pe.errors import ConfigError, DataError

_log = get_logger(__name__)
_MOST_KEPT = 1 << 26
"""Bytes of token ids of one data set that stay in memory from one validation to the next."""


class ValidationSet:
    """Samples of one data set that are validated on; they are numbered from 0."""

    def __init__(self, name: str, encoder: DocumentEncoder) -> None:
        """Remember the name and what makes documents."""
        self.name = name
        self._encoder = replace(encoder, seed=seed_of(encoder.seed, name, purpose="validation"))

    def __len__(self) -> int:
        """Return the number of samples."""
        raise NotImplementedError

    def source(self, number: int) -> SampleId:
        """Return where a sample comes from."""
        raise NotImplementedError

    def encoded(self, number: int) -> EncodedSample:
        """Return a sample as tokens.

        Raises:
            DataError: it cannot be used, and why.
        """
        raise NotImplementedError

    def lengths(self, number: int) -> tuple[int, int]:
        """Return the tokens and tiles of a sample; errors as in `encoded`."""
        sample = self.encoded(number)
        return sample.num_tokens, sample.num_tiles

    @property
    def open_picture(self) -> Callable[[Picture], Image.Image] | None:
        """Return what opens its images; None: they are opened by their paths."""
        return None

    def document(self, number: int) -> TrainingDocument:
        """Return a sample as every validation sees it; errors as in `encoded`."""
        document = self._encoder.draw(self.encoded(number), 0, self.source(number).line)
        return replace(document, pictures=tuple(map(_not_augmented, document.pictures)))


class ListedValidationSet(ValidationSet):
    """Samples of an annotation file."""

    def __init__(self, dataset: Dataset, encoder: DocumentEncoder) -> None:
        """Take all samples of a data set."""
        super().__init__(dataset.name, encoder)
        self.dataset = dataset
        self._kept: dict[int, EncodedSample] = {}
        self._room = _MOST_KEPT

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def source(self, number: int) -> SampleId:
        """Return where a sample comes from."""
        return self.dataset.id_of(number)

    def encoded(self, number: int) -> EncodedSample:
        """Return a sample as tokens; errors as in the base class."""
        if (known := self._kept.get(number)) is not None:
            return known
        sample = self._encoder.encode(self.dataset, number)
        if (size := sample.text.ids.nbytes) <= self._room:
            self._kept[number] = sample
            self._room -= size
        return sample


class IndexedValidationSet(ValidationSet):
    """Samples of one data set of an indexed data set."""

    def __init__(self, name: str, samples: IndexedSamples, numbers: np.ndarray, encoder: DocumentEncoder) -> None:
        """Take the samples of these numbers."""
        super().__init__(name, encoder)
        self._samples, self._numbers = samples, numbers

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._numbers)

    def source(self, number: int) -> SampleId:
        """Return where a sample comes from."""
        return self._samples.source(int(self._numbers[number]))

    def encoded(self, number: int) -> EncodedSample:
        """Return a sample as it was encoded; a video that has changed since then is an error."""
        sample = self._samples[int(self._numbers[number])]
        for item in sample.media:
            if isinstance(item, Clip) and item.file is not None:
                self._samples.files.check_video(item.file, item.path)
        return sample

    def lengths(self, number: int) -> tuple[int, int]:
        """Return the tokens and tiles of a sample, which are recorded."""
        sample = int(self._numbers[number])
        return int(self._samples.num_tokens[sample]), int(self._samples.num_tiles[sample])

    @property
    def open_picture(self) -> Callable[[Picture], Image.Image] | None:
        """Return what opens images as the set has recorded them."""
        return self._samples.files.open_picture


def open_validation_sets(
    config: DataConfig, encoder: DocumentEncoder, hold_out: HoldOut | None, most: int | None, seed: int
) -> list[ValidationSet]:
    """Open the data of a validation.

    Args:
        config: settings by which they are read, see `ValidationConfig.data`.
        encoder: makes documents; its seed decides what is drawn.
        hold_out: of the data, only what is held out is taken; None: all.
        most: most samples of a set; None: all.
        seed: decides which these are.

    Raises:
        ConfigError: the data list is wrong, an indexed set was built with other settings, or nothing is held out.
        DataError: an indexed set is damaged.
    """
    found: list[ValidationSet] = []
    if config.indexed_path:
        samples = IndexedSamples(config.indexed_path)
        samples.check(config, encoder.tokenizer, encoder.facts)
        for entry in samples.manifest.datasets:
            lines = samples.lines[entry.first : entry.first + entry.samples]
            taken = np.arange(entry.samples) if hold_out is None else np.flatnonzero(hold_out.held(entry.name, lines))
            chosen = taken[smallest_draws(seed, entry.name, lines[taken], most or len(taken), "validated")]
            if len(chosen):
                found.append(IndexedValidationSet(entry.name, samples, entry.first + chosen, encoder))
    else:
        datasets = read_data_list(config.meta_path)
        for dataset in datasets if hold_out is None else hold_out.held_part(datasets):
            chosen = np.zeros(len(dataset), dtype=bool)
            lines = dataset.line_numbers
            chosen[smallest_draws(seed, dataset.name, lines, most or len(lines), "validated")] = True
            found.append(ListedValidationSet(dataset.part(chosen), encoder))
    if not found:
        raise ConfigError(
            "validation.share holds out nothing: every data set has one sample only, which trains; give data of their "
            "own in validation.meta_path"
        )
    return found


@dataclass(frozen=True)
class ValidationPack:
    """Samples of one data set that go through the model together."""

    dataset: int
    """Number of the set; -1: an empty pack, which fills up a round of ranks."""
    samples: tuple[int, ...] = ()
    """Numbers in the set."""
    cost: int = 0
    """Sum of the squares of the lengths: the cost of attention."""


@dataclass(frozen=True)
class ValidationPlan:
    """All packs of a validation, the same in every layout."""

    names: tuple[str, ...]
    """Names of the sets."""
    packs: tuple[ValidationPack, ...]
    """Packs, the most costly first, so that ranks that share them end together."""
    samples: int
    """Samples in all packs."""

    @classmethod
    def of(
        cls, sets: Sequence[ValidationSet], config: DataConfig, tell: Callable[[], None] = lambda: None
    ) -> ValidationPlan:
        """Plan the packs from the lengths of all samples.

        Args:
            sets: the data.
            config: budgets of a pack, and how many samples may be left out.
            tell: is called for every sample: those of a data list are encoded, which takes a while.

        Raises:
            DataError: more samples cannot be used than `data.max_skipped_samples`, or all of a set.
        """
        skipped, packs = SkipLog(config.max_skipped_samples), list[ValidationPack]()
        budgets = PackBudgets(config.max_packed_tokens, config.num_images_expected)
        count = 0
        for place, one in enumerate(sets):
            numbers, lengths = list[int](), list[tuple[int, int]]()
            for number in range(len(one)):
                tell()
                try:
                    lengths.append(one.lengths(number))
                    numbers.append(number)
                except DataError as error:
                    skipped.skip(one.source(number), error)
            if not numbers:
                raise DataError(f"validation data set {one.name!r}: none of its {len(one)} samples can be used")
            count += len(numbers)
            tokens, tiles = np.array(lengths, dtype=np.int64).T
            table = plan_window(tokens, tiles, budgets)
            for pack in range(len(table)):
                chosen = table[pack]
                members = tuple(numbers[index] for index in chosen)
                packs.append(ValidationPack(place, members, int((tokens[chosen] ** 2).sum())))
        packs.sort(key=lambda pack: (-pack.cost, pack.dataset, pack.samples))
        return cls(tuple(one.name for one in sets), tuple(packs), count)

    def of_rank(self, rank: int, size: int, at_a_time: int = 1) -> list[ValidationPack]:
        """Return the packs of one of `size` data-parallel ranks.

        All get as many, a multiple of `at_a_time`; the last of them may be empty.
        """
        missing = -len(self.packs) % (size * at_a_time)
        packs = [*self.packs, *[ValidationPack(-1)] * missing]
        return [packs[number] for number in round_robin(len(packs), size)[rank]]


@dataclass
class ValidationReader:
    """Micro-batches of a rank's packs, validation after validation without end: a loader of `train/data_feed.py`.

    Pictures are read in threads, a few packs ahead and not beyond the end of a validation.
    """

    sets: Sequence[ValidationSet]
    packs: Sequence[ValidationPack]
    """Packs of this rank."""
    reader: PackReader
    threads: int = 1
    unreadable: Counter[str] = field(default_factory=Counter)
    """Stays empty: a sample that cannot be read is left out of the validation and does not end the run."""
    unusable = 0
    left_out: dict[SampleId, str] = field(default_factory=dict)
    """Samples whose images turned out damaged, and why."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end."""
        with ThreadPoolExecutor(self.threads, "validation data") as pool:
            while True:
                waiting = deque[Future[Batch]]()
                for pack in self.packs:
                    waiting.append(pool.submit(self.read, pack))
                    if len(waiting) > self.threads:
                        yield self._noted(waiting.popleft().result())
                while waiting:
                    yield self._noted(waiting.popleft().result())

    def read(self, pack: ValidationPack) -> Batch:
        """Read one pack; a sample whose images are damaged is left out and reported."""
        if pack.dataset < 0:
            return self.reader.read([])
        source, documents, unreadable = self.sets[pack.dataset], list[TrainingDocument](), list[tuple[SampleId, str]]()
        for number in pack.samples:
            try:
                documents.append(source.document(number))
            except DataError as error:
                unreadable.append((source.source(number), str(error)))
        return self.reader.read(documents, unreadable, source.open_picture)

    def _noted(self, batch: Batch) -> Batch:
        """Log each sample that had to be left out once."""
        for source, message in batch.unreadable:
            if source not in self.left_out:
                self.left_out[source] = message
                _log.warning("left out of the validation: %s: %s", source, message)
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return nothing: every validation begins anew."""
        return {}


def _not_augmented(picture: Picture) -> Picture:
    if not any(isinstance(operation, JpegAugmentation) for operation in picture.operations):
        return picture
    kept = tuple(operation for operation in picture.operations if not isinstance(operation, JpegAugmentation))
    return replace(picture, operations=kept)
