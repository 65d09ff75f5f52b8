"""Packs of an indexed data set: which samples make up each of them, and reading one.

The plan is a pure function of seed, epoch and the pack's number; packs are read in the loader's worker processes.

An epoch is the mixture's order, packed window by window from lengths alone. The state of a run is the epoch and how
many of its packs are done. A step never reaches across an epoch's end: what is missing there is filled with empty
packs, which weigh nothing, so every sample is seen exactly as often as the mixture says under any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch.utils.data import Dataset

from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.data_list import read_image_operations, read_openings, read_shares
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.hold_out import HoldOut, with_counts
from megatron_v2pe.data.indexed.layout import IndexedSet
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_plan import LOADER_STATE
from megatron_v2pe.data.packing.balance import deal, round_robin
from megatron_v2pe.data.packing.planner import PackBudgets, plan_window
from megatron_v2pe.data.types import Batch, Clip, SampleId, TrainingDocument
from megatron_v2pe.errors import CheckpointError, ConfigError, DataError
from megatron_v2pe.foreign.schema import Range, typed


@dataclass(frozen=True)
class IndexedPack:
    """The samples of one pack; none: it fills up a step."""

    epoch: int
    samples: tuple[int, ...] = ()
    """Numbers in the data set."""
    numbers: tuple[int, ...] = ()
    """Numbers in the epoch, which draws are keyed by."""
    cost: int = 0
    """Cost of attention: the sum of the squares of the lengths of its documents."""


@dataclass(frozen=True)
class IndexedPlanState:
    """State of a plan, as a checkpoint holds it."""

    epoch: Annotated[int, Range(0)]
    packs: Annotated[int, Range(0)]
    """How many packs of the epoch are done."""
    skipped: dict[str, Annotated[int, Range(0)]]
    """Samples refused so far, by cause."""
    plan: dict[str, Any]
    """What decides the packs, to be compared."""

    @classmethod
    def read(cls, content: Any) -> IndexedPlanState:
        """Check the state of a checkpoint.

        Raises:
            ConfigError: it is that of a data list.
            CheckpointError: damaged; names the field.
        """
        if isinstance(content, dict) and "mixture" in content:
            raise ConfigError("the checkpoint was trained on a data list; set data.meta_path, not data.indexed_path")
        return typed(cls, content, LOADER_STATE, CheckpointError)


class IndexedPlan:
    """The packs of a run, step by step."""

    def __init__(
        self,
        samples: IndexedSamples,
        config: DataConfig,
        seed: int,
        skipped: SkipLog,
        state: dict[str, Any] | None = None,
        hold_out: HoldOut | None = None,
    ) -> None:
        """Start at the beginning, or where `state` (of an earlier run) left off; what is held out is never planned.

        Raises:
            ConfigError: the state belongs to other data, budgets or another seed.
        """
        self._samples, self._config, self._skipped = samples, config, skipped
        sets = _shares(samples.manifest.datasets, config.meta_path)
        self._trained: np.ndarray | None = None
        if hold_out is not None:
            counts, self._trained = hold_out.training_samples(samples)
            sets = with_counts(sets, counts)
        sets = [entry for entry in sets if entry.samples]
        self._first = np.array([entry.first for entry in sets])
        self.mixture: Mixture[IndexedSet] = Mixture(sets, seed, config.use_data_resampling)
        """The order of the samples of each epoch."""
        self._budgets = PackBudgets(
            config.max_packed_tokens,
            config.num_images_expected,
            config.pack_padding_multiple,
            config.max_padding_share,
        )
        self._epoch, self._done = 0, 0
        if state is not None:
            there = IndexedPlanState.read(state)
            self._check(there)
            self._epoch, self._done = there.epoch, there.packs
        self._packs = self.epoch(self._epoch, self._done)

    def step(self, packs: int) -> list[IndexedPack]:
        """Return the packs of the next step; at an epoch's end some of them are empty."""
        taken = list(islice(self._packs, packs))
        if not taken:  # the epoch ended with the step before
            self._next_epoch()
            taken = list(islice(self._packs, packs))
        epoch, self._done = self._epoch, self._done + len(taken)
        if len(taken) < packs:
            self._next_epoch()
        return taken + [IndexedPack(epoch)] * (packs - len(taken))

    def deal(self, packs: Sequence[IndexedPack], ranks: int) -> list[list[int]]:
        """Deal the packs of a step out to ranks, each the same number, by the cost of their attention."""
        if not self._config.balance_attention:
            return round_robin(len(packs), ranks)
        return deal([pack.cost for pack in packs], ranks)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[IndexedPack]:
        """Yield the packs of an epoch from its pack `start` on; as many windows as needed are packed."""
        datasets, lines = self.mixture.order(epoch)
        order = self._first[datasets] + lines
        order = order if self._trained is None else self._trained[order]
        window = self._config.packing_window or len(order)
        passed = 0
        for begin in range(0, len(order), window):
            members = order[begin : begin + window]
            tokens = self._samples.num_tokens[members].astype(np.int64)
            tiles = self._samples.num_tiles[members].astype(np.int64)
            table = plan_window(tokens, tiles, self._budgets)
            for number in range(max(start - passed, 0), len(table)):
                chosen = table[number]
                yield IndexedPack(
                    epoch,
                    tuple(members[chosen].tolist()),
                    tuple((chosen + begin).tolist()),
                    int((tokens[chosen] ** 2).sum()),
                )
            passed += len(table)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last step; plain JSON."""
        skipped = dict(self._skipped.counts)
        return {"epoch": self._epoch, "packs": self._done, "skipped": skipped, "plan": self.fingerprint()}

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the packs, for a resumed run to be compared with."""
        budgets = self._budgets
        return {
            "lengths": self._samples.manifest.lengths_sha256[:16],
            "mixture": self.mixture.fingerprint(),
            "max_packed_tokens": budgets.max_tokens,
            "num_images_expected": budgets.max_tiles,
            "pack_padding_multiple": budgets.padding_multiple,
            "max_padding_share": budgets.max_padding_share,
            "packing_window": self._config.packing_window,
        }

    def _next_epoch(self) -> None:
        self._epoch, self._done = self._epoch + 1, 0
        self._packs = self.epoch(self._epoch)

    def _check(self, state: IndexedPlanState) -> None:
        ours, theirs = self.fingerprint(), state.plan
        differing = [f"{name} {theirs.get(name)} (now {ours[name]})" for name in ours if theirs.get(name) != ours[name]]
        if differing:
            raise ConfigError(
                f"the checkpoint was trained with other packs, and cannot go on with these: {', '.join(differing)}. "
                "Give what it had, or start a new run from it: --model.model-name-or-path RUN --checkpoint.save OTHER"
            )


def _shares(sets: Sequence[IndexedSet], meta_path: str) -> list[IndexedSet]:
    """Return the data sets with `repeat_time` and `weight` of the data list, where there is one, else as built."""
    if not meta_path or not Path(meta_path).is_file():
        return list(sets)
    shares = read_shares(meta_path)
    if sorted(shares) != sorted(entry.name for entry in sets):
        differing = sorted(set(shares) ^ {entry.name for entry in sets})
        raise ConfigError(
            f"data.meta_path {meta_path} and data.indexed_path do not list the same data sets: "
            f"{', '.join(differing[:5])} in one alone; build again, or leave data.meta_path empty to take repeats and "
            "weights from the build"
        )
    openings, operations = read_openings(meta_path), read_image_operations(meta_path)
    for entry in sets:
        for listed, built in (
            (openings[entry.name], entry.opening),
            (f"image_operations {list(operations[entry.name])}", f"image_operations {list(entry.image_operations)}"),
        ):
            if listed != built:
                raise ConfigError(
                    f"data.meta_path {meta_path}: data set {entry.name!r}: {listed}; data.indexed_path was built with "
                    f"{built}; build it again"
                )
    return [replace(entry, repeat_time=shares[entry.name][0], weight=shares[entry.name][1]) for entry in sets]


@dataclass(frozen=True)
class IndexedReader(Dataset[Batch]):
    """Reads packs of an indexed data set."""

    samples: IndexedSamples
    encoder: DocumentEncoder
    """Gives strides and what else an epoch draws."""
    reader: PackReader

    def __getitem__(self, pack: IndexedPack) -> Batch:
        """Read one pack; a sample whose images have changed or are damaged is left out and reported."""
        documents: list[TrainingDocument] = []
        unreadable: list[tuple[SampleId, str]] = []
        for sample, number in zip(pack.samples, pack.numbers, strict=True):
            try:
                documents.append(draw_document(self.samples, self.encoder, sample, pack.epoch, number))
            except DataError as error:
                unreadable.append((self._source(sample), str(error)))
        return self.reader.read(documents, unreadable, self.samples.files.open_picture)

    def _source(self, sample: int) -> SampleId:
        """Return where a sample comes from, as far as its record can be trusted."""
        try:
            return self.samples.source(sample)
        except DataError:
            return SampleId(f"sample {sample}", 0, str(self.samples.folder))


def draw_document(
    samples: IndexedSamples, encoder: DocumentEncoder, sample: int, epoch: int, number: int
) -> TrainingDocument:
    """Return a sample of an indexed set as one pass over it sees it; the last two are those of `DocumentEncoder.draw`.

    Raises:
        DataError: its video has changed since the set was built.
    """
    encoded = samples[sample]
    for item in encoded.media:
        if isinstance(item, Clip) and item.file is not None:
            samples.files.check_video(item.file, item.path)
    return encoder.draw(encoded, epoch, number)
