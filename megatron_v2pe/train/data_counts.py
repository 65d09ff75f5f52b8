"""What has been drawn of the data: samples, tokens, tiles and weights of each data set, and how long samples are.

The readers of all copies of the model count their packs (`DataCounts.of`); the counts travel with the exchange in which
a step's totals are agreed upon (`train/data_feed.py`), so that every rank knows them and no device is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.data.types import IGNORE_INDEX, Batch
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.train.page.bins import LENGTH_BINS, TILE_BINS, length_bin, tile_bin

FIGURES = ("weight", "samples", "tokens", "tiles", "supervised")
"""What is counted of each data set: sum of loss weights, documents, tokens, tiles, and tokens that are learned."""


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
                values = [row.number(figure, least=0) for figure in FIGURES]
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
        described = zip(batch.sources, weights, lengths, batch.document_tiles, learned, strict=True)
        for source, weight, length, tile_count, count in described:
            row = torch.tensor([weight, 1, length, tile_count, count], dtype=torch.float64)
            self._sets[numbers[source.dataset]] += row
            self.counts[start + length_bin(length)] += 1
            self.counts[start + LENGTH_BINS + tile_bin(tile_count)] += 1
