"""The order of samples: an endless stream over all data sets, a pure function of seed and position.

An epoch holds every line as often as `repeat_time` says, shuffled anew; nothing is dropped at its end. Ranks and
workers take their share of packs from this one stream, so that the order does not depend on how many there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from megatron_v2pe.base.keyed_random import seed_of


class Source(Protocol):
    """A data set that can be mixed with others."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    @property
    def name(self) -> str:
        """Return its name in the data list."""
        ...

    @property
    def repeat_time(self) -> float:
        """Return how often each sample is seen per epoch."""
        ...

    @property
    def weight(self) -> float | None:
        """Return its share of an epoch relative to the other data sets; None: by its size."""
        ...


SourceType = TypeVar("SourceType", bound=Source)


class Mixture(Generic[SourceType]):
    """The order of the samples of all data sets, epoch after epoch, shuffled by a seed."""

    def __init__(self, datasets: Sequence[SourceType], seed: int, by_square_root: bool = False) -> None:
        """Describe the stream.

        Args:
            datasets: in the order of the data list.
            seed: of shuffling and of partial repeats.
            by_square_root: draw data sets by the square root of their size instead of their size; the length of an
                epoch stays the same.
        """
        self.datasets = list(datasets)
        self.seed = seed
        self._sizes = [repeated_length(len(dataset), dataset.repeat_time) for dataset in datasets]
        weights = [dataset.weight for dataset in datasets if dataset.weight is not None]
        if weights:
            self._shares = _shares(self._sizes, weights)
        else:
            self._shares = _shares(self._sizes, np.sqrt(self._sizes)) if by_square_root else self._sizes
        self.epoch_length = sum(self._shares)
        self.order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def samples_of_epoch(self) -> dict[str, int]:
        """Return how many samples of an epoch come from each data set, by its name."""
        return {dataset.name: share for dataset, share in zip(self.datasets, self._shares, strict=True)}

    def locate(self, position: int) -> tuple[SourceType, int, int, int]:
        """Return what stands at a position of the stream: data set, line index, epoch, number in the epoch."""
        epoch, number = divmod(position, self.epoch_length)
        datasets, lines = self.order(epoch)
        return self.datasets[datasets[number]], int(lines[number]), epoch, number

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the order, for a resumed run to be compared with."""
        sizes = {dataset.name: size for dataset, size in zip(self.datasets, self._sizes, strict=True)}
        described = [[dataset.name, len(dataset), dataset.repeat_time] for dataset in self.datasets]
        digest = hashlib.sha256(json.dumps([described, self._shares]).encode()).hexdigest()[:16]
        return {"seed": self.seed, "samples": sizes, "digest": digest}

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the data set's number and the index in it for each sample of an epoch: int [epoch_length] each."""
        lines = [self._lines(index, epoch) for index in range(len(self.datasets))]
        owner = np.repeat(np.arange(len(lines), dtype=np.int32), [len(part) for part in lines])
        order = self._generator(epoch, "order").permutation(self.epoch_length)
        return owner[order], np.concatenate(lines)[order]

    def _lines(self, index: int, epoch: int) -> np.ndarray:
        """Return the indices of the lines that one data set gives to an epoch, not shuffled."""
        dataset, size, share = self.datasets[index], self._sizes[index], self._shares[index]
        whole, part = divmod(size, len(dataset))
        generator = self._generator(epoch, "lines", index)
        lines = np.concatenate([np.tile(np.arange(len(dataset)), whole), generator.permutation(len(dataset))[:part]])
        if share == size:
            return lines
        repeats = -(-share // size)
        return np.concatenate([generator.permutation(lines) for _ in range(repeats)])[:share]

    def _generator(self, epoch: int, what: str, index: int = 0) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.seed, epoch, what, index, purpose="mixture"))


def repeated_length(lines: int, repeat_time: float) -> int:
    """Return the samples per epoch of a data set: whole copies, and `int(lines * rest)` of one more."""
    whole = int(repeat_time)
    if repeat_time < 1:
        return max(int(lines * repeat_time), 1)
    return whole * lines + int(lines * (repeat_time - whole))


def _shares(sizes: Sequence[int], weights: Sequence[float] | np.ndarray) -> list[int]:
    """Divide an epoch, as long as all data sets together, by weights."""
    weights = np.asarray(weights, dtype=np.float64)
    shares = np.floor(sum(sizes) * weights / weights.sum()).astype(int)
    shares[: sum(sizes) - shares.sum()] += 1
    return [max(int(share), 1) for share in shares]
