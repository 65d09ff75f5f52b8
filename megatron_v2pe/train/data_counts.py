"""What has been drawn of the data: samples, tokens, tiles and weights of each data set, and how long samples are.

The readers of all copies of the model count their packs (`DataCounts.of`); the counts travel with the exchange in which
a step's totals are agreed upon (`train/data_feed.py`), so that every rank knows them and no device is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.data.types import IGNORE_INDEX, Batch
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import Fields

FIGURES = ("weight", "samples", "tokens", "tiles", "supervised")
"""What is counted of each data set: sum of loss weights, documents, tokens, tiles, and tokens that are learned."""
LENGTH_BINS = 48
"""Bins of documents by tokens: bin b holds lengths from 2^(b/2) up to 2^((b+1)/2); the last all above."""
TILE_BINS = 48
"""Bins of documents by tiles: one for each number below 33, then from 32 * 2^((b-32)/2) on; the last all above."""
_SINGLE_TILES = 32


@dataclass(frozen=True)
class DataCounts:
    """Counts over some steps; those of two spans add up."""

    names: tuple[str, ...]
    """Names of the data sets, in the order of the data list."""
    counts: Tensor
    """float64 [data sets * FIGURES + LENGTH_BINS + TILE_BINS] on the host; every count is exact below 2^53."""

    @classmethod
    def nothing(cls, names: Sequence[str]) -> DataCounts:
        """Return counts of zero."""
        size = len(names) * len(FIGURES) + LENGTH_BINS + TILE_BINS
        return cls(tuple(names), torch.zeros(size, dtype=torch.float64))

    @classmethod
    def of(cls, batches: Sequence[Batch], names: Sequence[str]) -> DataCounts:
        """Count the micro-batches of one reader; without names nothing is counted."""
        drawn = cls.nothing(names)
        if not names:
            return drawn
        for batch in batches:
            drawn._count(batch)
        return drawn

    def __add__(self, other: DataCounts) -> DataCounts:
        """Add up the counts of two spans of steps over the same data sets."""
        assert self.names == other.names
        return DataCounts(self.names, self.counts + other.counts)

    def figure(self, name: str) -> list[float]:
        """Return a figure (one of `FIGURES`) of every data set, in order."""
        return self._sets[:, FIGURES.index(name)].tolist()

    @property
    def lengths(self) -> list[int]:
        """Return how many documents lie in each bin of length."""
        start = len(self.names) * len(FIGURES)
        return [int(count) for count in self.counts[start : start + LENGTH_BINS].tolist()]

    @property
    def tiles(self) -> list[int]:
        """Return how many documents lie in each bin of tiles."""
        return [int(count) for count in self.counts[-TILE_BINS:].tolist()]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain JSON."""
        rows = {
            name: dict(zip(FIGURES, [row[0], *map(int, row[1:])], strict=True))
            for name, row in zip(self.names, self._sets.tolist(), strict=True)
        }
        return {"sets": rows, "lengths": self.lengths, "tiles": self.tiles}

    @classmethod
    def from_json(cls, state: Mapping[str, Any], names: Sequence[str], source: str) -> DataCounts:
        """Return the counts of the data sets that a run has now; those of sets that it no longer has are left out.

        Args:
            state: what `to_json` has given.
            names: data sets of the run.
            source: where it stands, for an error.

        Raises:
            CheckpointError: it is damaged.
        """
        drawn = cls.nothing(names)
        fields = Fields(state, source, CheckpointError)
        rows = fields.section("sets")
        for number, name in enumerate(drawn.names):
            if name in rows.content:
                row = rows.section(name)
                values = [row.number(figure, least=0.0) for figure in FIGURES]
                drawn._sets[number] = torch.tensor(values, dtype=torch.float64)
        start = len(drawn.names) * len(FIGURES)
        for what, first, size in (("lengths", start, LENGTH_BINS), ("tiles", start + LENGTH_BINS, TILE_BINS)):
            bins = fields.get(what, list[int])
            if len(bins) != size:
                raise CheckpointError(f"{source}: {what} has {len(bins)} bins, this version writes {size}")
            drawn.counts[first : first + size] = torch.tensor(bins, dtype=torch.float64)
        return drawn

    @property
    def _sets(self) -> Tensor:
        """Return the part of the counts that is by data set, a view [data sets, FIGURES]."""
        return self.counts[: len(self.names) * len(FIGURES)].view(len(self.names), len(FIGURES))

    def _count(self, batch: Batch) -> None:
        start = len(self.names) * len(FIGURES)
        numbers = {name: number for number, name in enumerate(self.names)}
        lengths = list(batch.seqlens)
        weights = [part.sum().item() for part in batch.loss_weights.double().split(lengths)] if lengths else []
        learned = [int(part.sum()) for part in (batch.labels != IGNORE_INDEX).split(lengths)] if lengths else []
        tiles = batch.document_tiles or (0,) * len(lengths)
        for source, weight, length, tile_count, count in zip(
            batch.sources, weights, lengths, tiles, learned, strict=True
        ):
            row = torch.tensor([weight, 1, length, tile_count, count], dtype=torch.float64)
            self._sets[numbers[source.dataset]] += row
            self.counts[start + length_bin(length)] += 1
            self.counts[start + LENGTH_BINS + tile_bin(tile_count)] += 1


def length_bin(tokens: int) -> int:
    """Return the bin of a document of so many tokens, at least 1."""
    return min(int(2 * log2(tokens)), LENGTH_BINS - 1)


def tile_bin(tiles: int) -> int:
    """Return the bin of a document of so many tiles."""
    if tiles <= _SINGLE_TILES:
        return tiles
    return min(_SINGLE_TILES + int(2 * log2(tiles / _SINGLE_TILES)), TILE_BINS - 1)


def length_range(bin_number: int) -> tuple[int, int]:
    """Return the least and the largest number of tokens of a bin; the largest of the last is that of its formula."""
    first, behind = (2 ** ((bin_number + more) / 2) for more in (0, 1))
    return _ceil(first), _ceil(behind) - 1


def tile_range(bin_number: int) -> tuple[int, int]:
    """Return the least and the largest number of tiles of a bin; the largest of the last is that of its formula."""
    if bin_number < _SINGLE_TILES:
        return bin_number, bin_number
    first, behind = (_SINGLE_TILES * 2 ** ((bin_number - _SINGLE_TILES + more) / 2) for more in (0, 1))
    return _ceil(first), _ceil(behind) - 1


def _ceil(value: float) -> int:
    return int(-(-value // 1))
