"""Finding what is to be looked at: a pack as training gets it, or one sample, of a data list or an indexed data set."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megatron_v2pe.base.progress import followed
from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.indexed.plan import IndexedPlan, draw_document
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture, SourceType
from megatron_v2pe.data.pack_plan import PackPlan
from megatron_v2pe.data.types import Picture, SampleId, TrainingDocument
from megatron_v2pe.errors import ConfigError, DataError


@dataclass(frozen=True)
class Found:
    """Documents that were found for inspection."""

    title: str
    documents: tuple[TrainingDocument, ...]
    left_out: tuple[str, ...] = ()
    """Samples that cannot be used: source and reason, or number and kind of reason."""
    open_picture: Callable[[Picture], Image.Image] | None = None
    """Reads an image other than from its path, see `read_tiles`."""


def find_pack(encoder: DocumentEncoder, pack: int, epoch: int = 0) -> Found:
    """Return a pack as training gets it.

    Args:
        encoder: its settings name an indexed data set or a data list.
        pack: number in the epoch, from 0; the packs of a data list count from the start of the run.
        epoch: epoch of an indexed data set; the packs of a data list flow from one epoch into the next.

    Raises:
        ConfigError: there is no such pack, the data list is wrong, or a set was built with other settings.
        DataError: an indexed set is damaged, or no sample can be used.
    """
    if pack < 0 or epoch < 0:
        raise ConfigError(f"pack {pack} of epoch {epoch}: expected 0 or more of both")
    if encoder.config.indexed_path:
        return _pack_of_set(encoder, pack, epoch)
    if epoch:
        raise ConfigError(
            f"--epoch {epoch}: packs of a data list flow from one epoch into the next; --pack alone names one, "
            "counted from the start of the run"
        )
    return _pack_of_list(encoder, pack)


def find_sample(encoder: DocumentEncoder, name: str, epoch: int = 0) -> Found:
    """Return one sample with the strides and augmentation of its first place in the epoch.

    Args:
        encoder: its settings name an indexed data set or a data list.
        name: `DATASET:LINE`, the line counted from 1; of an indexed data set also the number of a sample, from 0.
        epoch: the epoch whose random draws are shown.

    Raises:
        ConfigError: there is no such sample, the data list is wrong, or a set was built with other settings.
        DataError: the sample cannot be used, or an indexed set is damaged.
    """
    if epoch < 0:
        raise ConfigError(f"--epoch {epoch}: expected 0 or more")
    return (_sample_of_set if encoder.config.indexed_path else _sample_of_list)(encoder, name, epoch)


def _pack_of_list(encoder: DocumentEncoder, pack: int) -> Found:
    config, skipped = encoder.config, SkipLog(sys.maxsize, quiet=True)
    mixture = Mixture(read_data_list(config.meta_path), encoder.seed, config.use_data_resampling)
    plan = PackPlan(mixture, encoder, skipped)
    for _ in followed(range(pack), desc="plan packs", unit="packs"):
        plan.next()
    documents = plan.next()
    left_out = [f"{count:,} x {cause}" for cause, count in skipped.counts.items()]
    if left_out:
        allowed = f"data.max_skipped_samples allows {config.max_skipped_samples:,}"
        left_out.append(f"{skipped.total:,} in all up to this pack, {allowed}")
    return Found(f"pack {pack} of the run", documents, tuple(left_out))


def _pack_of_set(encoder: DocumentEncoder, pack: int, epoch: int) -> Found:
    samples = _open(encoder)
    plan = IndexedPlan(samples, encoder.config, encoder.seed, SkipLog(0))
    found = next(plan.epoch(epoch, pack), None)
    if found is None:
        count = sum(1 for _ in plan.epoch(epoch))
        raise ConfigError(f"--pack {pack}: epoch {epoch} has packs 0 to {count - 1}")
    documents, left_out = list[TrainingDocument](), list[str]()
    for sample, number in zip(found.samples, found.numbers, strict=True):
        try:
            documents.append(draw_document(samples, encoder, sample, epoch, number))
        except DataError as error:
            left_out.append(f"{samples.source(sample)}: {error}")
    title = f"pack {pack} of epoch {epoch}"
    return Found(title, tuple(documents), tuple(left_out), samples.files.open_picture)


def _sample_of_list(encoder: DocumentEncoder, name: str, epoch: int) -> Found:
    datasets = read_data_list(encoder.config.meta_path)
    owner, line = _dataset_and_line(name, [dataset.name for dataset in datasets])
    dataset = datasets[owner]
    index = _index_of(line, len(dataset), lambda index: dataset.id_of(index).line)
    if index is None:
        raise ConfigError(f"--sample {name}: {dataset.annotation} has no sample in line {line}")
    mixture = Mixture(datasets, encoder.seed, encoder.config.use_data_resampling)
    title, number = _place(mixture, owner, index, epoch)
    with _naming(dataset.id_of(index)):
        document = encoder.document(dataset, index, epoch, number)
    return Found(f"{name}, {title}", (document,))


def _sample_of_set(encoder: DocumentEncoder, name: str, epoch: int) -> Found:
    samples = _open(encoder)
    sets = [entry for entry in samples.manifest.datasets if entry.samples]
    if is_whole_number(name):
        sample = int(name)
        if sample >= len(samples):
            raise ConfigError(f"--sample {name}: {samples.folder} has samples 0 to {len(samples) - 1}")
        owner = bisect_right([entry.first for entry in sets], sample) - 1
        index = sample - sets[owner].first
    else:
        owner, line = _dataset_and_line(name, [entry.name for entry in sets])
        first = sets[owner].first
        index = _index_of(line, len(sets[owner]), lambda index: samples.source(first + index).line)
        if index is None:
            raise ConfigError(
                f"--sample {name}: {samples.folder} has no sample of this line; if the file has, its report.json says "
                "why it was left out"
            )
        sample = first + index
    mixture = Mixture(sets, encoder.seed, encoder.config.use_data_resampling)
    title, number = _place(mixture, owner, index, epoch)
    with _naming(samples.source(sample)):
        document = draw_document(samples, encoder, sample, epoch, number)
    return Found(f"sample {sample} of {samples.folder}, {title}", (document,), (), samples.files.open_picture)


@contextmanager
def _naming(source: SampleId) -> Iterator[None]:
    """Name the sample in errors."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _open(encoder: DocumentEncoder) -> IndexedSamples:
    samples = IndexedSamples(encoder.config.indexed_path)
    samples.check(encoder.config, encoder.tokenizer, encoder.facts)
    return samples


def _dataset_and_line(name: str, datasets: list[str]) -> tuple[int, int]:
    """Split `DATASET:LINE` into the number of the data set and the line."""
    dataset, colon, line = name.rpartition(":")
    if not colon or not is_whole_number(line):
        raise ConfigError(f"--sample {name}: expected DATASET:LINE, or a number of an indexed data set")
    if dataset not in datasets:
        raise ConfigError(f"--sample {name}: no data set {dataset!r}; there are {', '.join(datasets)}")
    return datasets.index(dataset), int(line)


def _index_of(line: int, count: int, line_of: Callable[[int], int]) -> int | None:
    """Return which of `count` samples stands in a line, None where there is none; lines ascend."""
    index = bisect_left(range(count), line, key=line_of)
    return index if index < count and line_of(index) == line else None


def _place(mixture: Mixture[SourceType], owner: int, index: int, epoch: int) -> tuple[str, int]:
    """Return how often a sample is seen in an epoch, as text, and its first place in it; 0 if it is not."""
    datasets, lines = mixture.order(epoch)
    places = np.flatnonzero((datasets == owner) & (lines == index)).tolist()
    if not places:
        return f"not seen in epoch {epoch}: draws of its place 0", 0
    times = "once" if len(places) == 1 else f"{len(places)} times"
    return f"seen {times} in epoch {epoch}", places[0]
