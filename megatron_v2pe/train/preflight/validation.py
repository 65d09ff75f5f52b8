"""Validation data of a run before it starts: read as the run reads them, and compared with the training data."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.data.validation_sets import ValidationSet
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.preflight.data import spread
from megatron_v2pe.train.preflight.findings import Findings

MOST_BYTES = 32 << 20
"""Annotations of a training list up to so large together are compared with validation data before a run starts."""
MOST_COMPARED = 200_000
"""Samples of an indexed training set that are compared before a run starts."""
_EACH = 8
"""Samples of a set that are read."""


def look_at_validation(found: Findings) -> None:
    """Read some samples of every validation set as a run does, and look for samples that training sees.

    Args:
        found: what was found of the run; without an encoder the data list alone is read.

    Raises:
        ConfigError: the data list is wrong, validation data are trained on, or `best_by` names no data set.
        DataError: more samples than may be skipped cannot be used.
    """
    config, settings = found.config, found.config.validation
    if not settings.is_on:
        return
    if found.encoder is None:
        if settings.meta_path:
            read_data_list(settings.meta_path)
        found.unseen.append("the samples of validation")
        return
    from megatron_v2pe.train.validation.opening import check_overlap, open_sets  # brings Megatron-Core
    from megatron_v2pe.train.validation.work import check_best_by

    sets = open_sets(config, found.encoder)
    check_best_by(settings, tuple(one.name for one in sets))
    looked, bad = 0, list[str]()
    for one in sets:
        faults = [fault for number in spread(len(one), _EACH) if (fault := _fault(one, number)) is not None]
        looked, bad = looked + min(len(one), _EACH), bad + faults
    allowed = config.data.max_skipped_samples
    if bad and len(bad) > allowed:
        raise DataError(
            f"{len(bad)} of {looked} samples of validation looked at cannot be used, data.max_skipped_samples is "
            f"{allowed}; {bad[0]}"
        )
    compares = _is_small(config)
    words = check_overlap(config, sets) if compares else None
    if words is not None:
        found.doubts.append(f"validation.allow_overlap: {words}")
    found.doubts += [f"{len(bad)} samples of validation cannot be used; {bad[0]}"] if bad else []
    samples = sum(len(one) for one in sets)
    share = f"a share of {settings.share:g} held out of training"
    where = share if settings.share else printable(settings.meta_path or settings.indexed_path)
    alike = "" if words is not None else ", none of them trained on" if compares else ", not yet compared with training"
    often = "at the end" if settings.interval is None else f"every {settings.interval:,} steps and at the end"
    found.right.append(
        f"validation: {where}, {len(sets)} set{'s' * (len(sets) > 1)}, {samples:,} samples{alike}; {often}; "
        f"{looked} samples read, with their files"
    )


def _fault(one: ValidationSet, number: int) -> str | None:
    """Return why a sample cannot be used, as far as that can be known without its pixels."""
    try:
        one.document(number)
    except DataError as error:
        return f"{one.source(number)}: {error}"
    return None


def _is_small(config: ExperimentConfig) -> bool:
    """Tell whether the training data can be compared without a wait; the run itself compares them in any case."""
    if config.data.indexed_path:
        return Manifest.read(Path(config.data.indexed_path)).counts["samples"] <= MOST_COMPARED
    return sum(os.path.getsize(dataset.annotation) for dataset in read_data_list(config.data.meta_path)) <= MOST_BYTES
