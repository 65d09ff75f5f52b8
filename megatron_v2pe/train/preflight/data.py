"""Data of a run before it starts: some samples of every data set are read as training reads them, without pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.hold_out import training_sets
from megatron_v2pe.data.indexed.plan import IndexedPlan, draw_document
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_plan import PackPlan
from megatron_v2pe.data.types import Clip, Picture
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.train.epochs import check_countable
from megatron_v2pe.train.preflight.findings import Findings

MOST_SAMPLES, FEWEST_OF_A_SET = 64, 8
"""Samples that are read, over all data sets, and of each one of them at least."""


def look_at_list(found: Findings) -> None:
    """Read some samples of every data set of a list, as training does, and take note of what is wrong.

    Args:
        found: what was found of the run; its encoder, where there is one, makes documents of the samples.

    Raises:
        DataError: the list, or more samples than a run may skip, cannot be used.
        ConfigError: an epoch is too long to be counted, or a checkpoint is of other data.
    """
    config, encoder = found.config, found.encoder
    datasets = training_sets(config.data.meta_path, config.validation.hold_out)
    mixture = Mixture(datasets, config.train.seed, config.data.use_data_resampling)
    if config.train.epochs is not None:
        found.attempt(lambda: check_countable(config.data.meta_path, config.train.epochs or 0, mixture.epoch_length))
    each = max(MOST_SAMPLES // len(datasets), FEWEST_OF_A_SET)
    looked, bad = 0, list[str]()
    for dataset in datasets:
        lines = spread(len(dataset), each)
        faults = [fault for line in lines if (fault := _fault(dataset, line, encoder)) is not None]
        looked += len(lines)
        bad += faults
        if len(faults) == len(lines):
            _tell_unusable(found, dataset, faults)
    _tell_data(found, config.data.meta_path, len(datasets), mixture.epoch_length, looked, bad)
    if encoder is not None and found.loader_state is not None:
        PackPlan(mixture, encoder, SkipLog(10**12, quiet=True), found.loader_state)


def look_at_indexed(found: Findings) -> None:
    """Read some samples of an indexed data set, as training does, and take note of what is wrong.

    Args:
        found: what was found of the run; its encoder, where there is one, makes documents of the samples.

    Raises:
        DataError: the set, or more samples than a run may skip, cannot be used.
        ConfigError: it was built with other settings, or a checkpoint is of other data.
    """
    config, encoder = found.config, found.encoder
    samples = IndexedSamples(config.data.indexed_path)
    if encoder is not None:
        samples.check(config.data, encoder.tokenizer, encoder.facts)
    hold_out = config.validation.hold_out
    plan = IndexedPlan(
        samples, config.data, config.train.seed, SkipLog(10**12, quiet=True), found.loader_state, hold_out
    )
    numbers, bad = spread(len(samples), MOST_SAMPLES), list[str]()
    for number in numbers:
        try:
            for item in samples[number].media:
                if isinstance(item, Picture):
                    samples.files.open_picture(item)
                elif isinstance(item, Clip) and item.file is not None:
                    samples.files.check_video(item.file, item.path)
            if encoder is not None:
                draw_document(samples, encoder, number, 0, number)
        except DataError as error:
            bad.append(f"{samples.source(number)}: {error}")
    sets, samples_of_epoch = len(plan.mixture.datasets), plan.mixture.epoch_length
    _tell_data(found, config.data.indexed_path, sets, samples_of_epoch, len(numbers), bad)


def spread(count: int, most: int) -> list[int]:
    """Return so many numbers below `count` at most, the first and the last among them."""
    most = max(most, 2)
    return list(range(count)) if count <= most else sorted({i * (count - 1) // (most - 1) for i in range(most)})


def _fault(dataset: Dataset, line: int, encoder: DocumentEncoder | None) -> str | None:
    """Return why a sample cannot be used, as far as that can be known without its pixels."""
    try:
        if encoder is not None:
            encoder.encode(dataset, line)
            return None
        sample = dataset.read(line)
        for path in (*sample.images, *([sample.video] if sample.video else [])):
            if not os.path.exists(path):
                raise DataError(f"{printable(path)}: no such file")
    except DataError as error:
        return f"{dataset.id_of(line)}: {error}"
    return None


def _tell_unusable(found: Findings, dataset: Dataset, faults: Sequence[str]) -> None:
    """Take note of a data set no sample of which can be used; refuse it where it has more than a run may skip."""
    text = f"dataset {dataset.name!r}: none of the {len(faults)} samples looked at can be used; {faults[0]}"
    if len(dataset) > found.config.data.max_skipped_samples:
        raise DataError(f"{text}; data.max_skipped_samples is {found.config.data.max_skipped_samples}")
    found.doubts.append(text)


def _tell_data(found: Findings, path: str, sets: int, samples: int, looked: int, bad: Sequence[str]) -> None:
    """Refuse samples that a run would stop at; where some may be skipped, say how many of those looked at are bad."""
    allowed = found.config.data.max_skipped_samples
    if bad and not allowed:
        raise DataError(
            f"{len(bad)} of {looked} samples looked at cannot be used, data.max_skipped_samples is 0; {bad[0]}; "
            "tools/check_data.py lists all that are missing"
        )
    how = f"{looked} samples read, with their files" + ("" if found.encoder is not None else ", without a tokenizer")
    found.right.append(f"data: {printable(path)}, {sets} set{'s' * (sets > 1)}, {samples:,} samples an epoch; {how}")
    if bad:
        found.doubts.append(
            f"{len(bad)} of {looked} samples cannot be used, data.max_skipped_samples is {allowed}; {bad[0]}"
        )
