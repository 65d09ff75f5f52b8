"""Which samples of a data set are held out for validation and never train: the lines with the smallest keyed draws.

A line's draw is a function of the seed, the name of its data set and the line's number, and of nothing else: it is the
same in every epoch, layout and process, whatever other data sets there are, and whether the set is read from its
annotation file or from an indexed data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_v2pe.base.keyed_random import seed_of
from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.indexed.layout import IndexedSet
from megatron_v2pe.data.indexed.samples import IndexedSamples


@dataclass(frozen=True)
class HoldOut:
    """A share of every data set that never trains."""

    share: float
    """Share of a set's samples, above 0 and below 1."""
    seed: int
    """Seed of the choice."""

    def count(self, samples: int) -> int:
        """Return how many of so many samples are held out: the share rounded, but one at least and one less than all.

        Of a set of one sample none is held out.
        """
        return min(max(round(self.share * samples), 1), samples - 1) if samples > 1 else 0

    def held(self, name: str, lines: np.ndarray) -> np.ndarray:
        """Return which samples of a data set are held out, bool [n].

        Args:
            name: name of the data set in its data list.
            lines: numbers of its samples' lines in the annotation file, int [n], no two alike.
        """
        chosen = np.zeros(len(lines), dtype=bool)
        chosen[smallest_draws(self.seed, name, lines, self.count(len(lines)), "held out")] = True
        return chosen

    def training_part(self, datasets: Sequence[Dataset]) -> list[Dataset]:
        """Return the data sets of a data list without what is held out."""
        return [dataset.part(~self.held(dataset.name, dataset.line_numbers)) for dataset in datasets]

    def held_part(self, datasets: Sequence[Dataset]) -> list[Dataset]:
        """Return what is held out of the data sets of a data list; sets that give no sample are left out."""
        parts = [dataset.part(self.held(dataset.name, dataset.line_numbers)) for dataset in datasets]
        return [part for part in parts if len(part)]

    def held_samples(self, samples: IndexedSamples) -> Iterator[tuple[IndexedSet, np.ndarray]]:
        """Yield every data set of an indexed data set, and which of its samples are held out, bool [n]."""
        for entry in samples.manifest.datasets:
            lines = samples.lines[entry.first : entry.first + entry.samples]
            yield entry, self.held(entry.name, lines)

    def training_samples(self, samples: IndexedSamples) -> tuple[dict[str, int], np.ndarray]:
        """Return how many samples of each data set train, by name, and the numbers of all that train, int64 [n]."""
        counts, numbers = dict[str, int](), list[np.ndarray]()
        for entry, held in self.held_samples(samples):
            numbers.append(entry.first + np.flatnonzero(~held))
            counts[entry.name] = len(numbers[-1])
        return counts, np.concatenate(numbers)


def training_sets(meta_path: str, hold_out: HoldOut | None) -> list[Dataset]:
    """Read a data list, and leave out of its data sets what is held out.

    Raises:
        ConfigError: see `read_data_list`.
    """
    datasets = read_data_list(meta_path)
    return datasets if hold_out is None else hold_out.training_part(datasets)


def with_counts(sets: Sequence[IndexedSet], counts: dict[str, int]) -> list[IndexedSet]:
    """Return data sets of an indexed data set with other numbers of samples, numbered from 0 without gaps."""
    first, changed = 0, list[IndexedSet]()
    for entry in sets:
        changed.append(replace(entry, first=first, samples=counts[entry.name]))
        first += counts[entry.name]
    return changed


def smallest_draws(seed: int, name: str, lines: np.ndarray, count: int, purpose: str) -> np.ndarray:
    """Return the places in `lines` of the `count` lines with the smallest draws, ascending, int64 [count].

    A draw is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection of 64 bits: no two lines of a set
    have the same draw, so that exactly `count` are chosen.

    Args:
        seed: seed of the draws.
        name: name of the data set.
        lines: numbers of lines, int [n], no two alike.
        count: how many are chosen, at most n.
        purpose: keeps draws of different kinds apart, at most 16 ASCII characters.
    """
    if count <= 0:
        return np.zeros(0, dtype=np.int64)
    if count >= len(lines):
        return np.arange(len(lines))
    key = np.uint64(seed_of(seed, name, purpose=purpose))
    with np.errstate(over="ignore"):
        draws = lines.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            draws = (draws ^ (draws >> np.uint64(shift))) * np.uint64(factor)
        draws ^= draws >> np.uint64(31)
    return np.sort(np.argpartition(draws, count - 1)[:count])
