"""How many steps the epochs of a run take: packs are planned from lengths alone, before the first step.

The packs of a run follow from data, settings and seed, so that counting them is exact. An indexed data set knows all
lengths; the samples of a data list are encoded once, without their pixels, which is done for small ones only. A run
that goes on counts what its checkpoint has left, whatever number of packs its steps now have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.hold_out import HoldOut, training_sets
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_plan import PackPlan
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable

MOST_COUNTED = 50_000
"""Most samples of a data list that are encoded to count its packs: a minute or two, at every start."""
MOST_UNASKED = 1_000
"""Most samples of a data list whose packs are counted only to be shown: a second."""
MOST_PLANNED = 200_000
"""Most samples of an indexed set whose packs are counted only to be shown."""


def steps_left(
    config: DataConfig,
    epochs: float,
    encoder: DocumentEncoder,
    packs_per_step: int,
    state: dict[str, Any] | None = None,
    tell: Callable[[], None] = lambda: None,
    hold_out: HoldOut | None = None,
) -> int:
    """Return the steps of `epochs` epochs, or of what is left of them after `state`.

    Args:
        config: settings of the data.
        epochs: passes over the data; a fraction counts as a part of an epoch's samples or packs.
        encoder: encoder of the run.
        packs_per_step: packs of a step, over all ranks.
        state: state of the loader, where a run goes on.
        tell: is called now and then while counting goes on.
        hold_out: which samples never train.

    Raises:
        ConfigError: a data list too long to be counted; says what to do. Or the state belongs to other data.
        DataError: more samples cannot be used than the run allows.
    """
    if config.indexed_path:
        samples, skipped = IndexedSamples(config.indexed_path), SkipLog(10**12, quiet=True)
        return _steps_of_set(
            IndexedPlan(samples, config, encoder.seed, skipped, state, hold_out), epochs, packs_per_step, tell
        )
    packs = packs_of_list(config, epochs, encoder, state, tell=tell, hold_out=hold_out)
    return -(-packs // packs_per_step)


def _steps_of_set(plan: IndexedPlan, epochs: float, packs_per_step: int, tell: Callable[[], None]) -> int:
    there = plan.state_dict()
    steps, done = 0, there["packs"]
    for epoch in range(there["epoch"], ceil(epochs)):
        tell()
        packs = ceil(round(sum(1 for _ in plan.epoch(epoch)) * min(epochs - epoch, 1.0), 6))
        steps += max(ceil((packs - done) / packs_per_step), 0)  # a step never reaches across an epoch's end
        done = 0
    return steps


def packs_of_list(
    config: DataConfig,
    epochs: float,
    encoder: DocumentEncoder,
    state: dict[str, Any] | None = None,
    most: int | None = None,
    tell: Callable[[], None] = lambda: None,
    hold_out: HoldOut | None = None,
) -> int:
    """Return the packs that `epochs` epochs of a data list fill, or what is left of them; arguments of `steps_left`.

    Raises:
        ConfigError: an epoch has more than `most` samples, `MOST_COUNTED` by default.
    """
    mixture = Mixture(training_sets(config.meta_path, hold_out), encoder.seed, config.use_data_resampling)
    check_countable(config.meta_path, epochs, mixture.epoch_length, most)
    lengths = _Lengths(encoder, tell, ceil(min(epochs, 1) * mixture.epoch_length))
    skipped = SkipLog(config.max_skipped_samples, quiet=True)
    with lengths.bar:
        plan, packs = PackPlan(mixture, cast(DocumentEncoder, lengths), skipped, state, epochs), 0
        while plan.next():
            packs += 1
    return packs


def check_countable(meta_path: str, epochs: float, samples: int, most: int | None = None) -> None:
    """Refuse epochs of a data list whose packs take too long to be counted at every start.

    Args:
        meta_path: path of the data list.
        epochs: epochs that are asked for.
        samples: samples of an epoch.
        most: most samples that are counted; `MOST_COUNTED` by default.

    Raises:
        ConfigError: says what to do.
    """
    most = most or MOST_COUNTED
    if samples > most:
        raise ConfigError(
            f"train.epochs {epochs:g}: an epoch of {printable(meta_path)} has {samples} samples, and the packs of more "
            f"than {most} are not counted at every start. Make an indexed data set of it, which knows its packs: "
            "tools/preprocess_data.py --out FOLDER with the same settings, then --data.indexed-path FOLDER; or give "
            "the steps: --train.train-steps N"
        )


@dataclass(frozen=True)
class _Length:
    """What packing needs of a document."""

    num_tokens: int
    num_tiles: int


class _Lengths:
    """Stands in for an encoder where only lengths are wanted; each line is encoded once for all epochs."""

    def __init__(self, encoder: DocumentEncoder, tell: Callable[[], None], most: int) -> None:
        self.config, self._encoder, self._tell = encoder.config, encoder, tell
        self._known: dict[tuple[str, int], _Length | DataError] = {}
        self.bar = progress_bar(total=most, desc="count packs", unit=" samples", delay=2.0)

    def document(self, dataset: Dataset, line: int, epoch: int, number: int) -> _Length:
        """Return the lengths of a sample; errors as in `DocumentEncoder.encode`."""
        key = dataset.name, line
        if key not in self._known:
            self._tell()
            try:
                sample = self._encoder.encode(dataset, line)
                self._known[key] = _Length(sample.num_tokens, sample.num_tiles)
            except DataError as error:
                self._known[key] = error
            self.bar.update(1)
        known = self._known[key]
        if isinstance(known, DataError):
            raise known
        return known


class _TooLong(Exception):
    """Counting has taken the time it may."""


def packs_of_epoch(
    config: DataConfig,
    encoder: DocumentEncoder,
    most: int | None = None,
    seconds: float = 5.0,
    hold_out: HoldOut | None = None,
) -> int | None:
    """Return the packs of the first epoch; None where they cannot be counted, or not in a short time.

    Args:
        config: settings of the data.
        encoder: encoder of the run.
        most: most samples that are counted; `MOST_PLANNED` or `MOST_UNASKED` by default.
        seconds: time that counting a data list may take; videos take long to open.
        hold_out: which samples never train.
    """
    until = time.monotonic() + seconds

    def look_at_the_clock() -> None:
        if time.monotonic() > until:
            raise _TooLong

    try:
        if not config.indexed_path:
            return packs_of_list(
                config, 1, encoder, most=most or MOST_UNASKED, tell=look_at_the_clock, hold_out=hold_out
            )
        samples, skipped = IndexedSamples(config.indexed_path), SkipLog(0, quiet=True)
        plan = IndexedPlan(samples, config, encoder.seed, skipped, hold_out=hold_out)
        return sum(1 for _ in plan.epoch(0)) if plan.mixture.epoch_length <= (most or MOST_PLANNED) else None
    except (ConfigError, DataError, _TooLong):
        return None  # where it matters, training says what is wrong
