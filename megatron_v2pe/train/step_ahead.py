"""The data of the next step made ready while a step computes: read, exchanged, cut, pinned, the first pack on its way.

One thread reads one step ahead and no further, in the same order on every rank, and uses no group but the feed's own.
The first step is read by the caller itself, whose children the readers of the loader become: they end with the thread
started them. What has been consumed is noted with each step (`Consumed`), not by the loader, which is a step ahead.
An error comes where its step would have come.

`generate/steps_ahead.py`, another idea, writes several tokens of an answer before the host reads any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

from megatron_v2pe.device.transfer import Arriving, Copies
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, PixelSettings
from megatron_v2pe.train.data_feed import Consumed, DataFeed, Totals
from megatron_v2pe.train.health.step_samples import PackSamples

_PATIENCE_SECONDS = 10.0
"""How long the end of a run waits for a step that was read in vain: other ranks wait in its exchange."""


@dataclass(frozen=True)
class StepData:
    """A step of training: this rank's micro-batches, and what all ranks know of the step."""

    totals: Totals
    """What the step holds, over all copies of the model."""
    consumed: Consumed
    """What counts as consumed once the step is done."""
    largest: tuple[int, int]
    """Tokens and tiles of the longest of this rank's packs."""
    samples: tuple[PackSamples, ...]
    """Samples of each of this rank's packs."""
    _first: deque[Arriving[MicroBatch]]
    """The first micro-batch, on its way to the device; a deque, so that it can be given away."""
    _others: deque[MicroBatch]
    _copies: Copies
    _pixels: PixelSettings

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Return the micro-batches one by one, ready for the model; while one is used the next is copied.

        Call it once: nothing is held longer than it is used.
        """
        return map(self._pixels.ready, self._copies.one_ahead(self._first.popleft(), _popped(self._others)))


class StepDataReader:
    """Reads the data of steps in order, one step ahead of the one that is used."""

    def __init__(
        self,
        feed: DataFeed,
        cutter: PackCutter,
        pixels: PixelSettings,
        micro_batches: int,
        key: Callable[[int, int], DropPathKey],
    ) -> None:
        """Remember where steps come from; nothing is read yet.

        Args:
            feed: gives whole batches.
            cutter: makes this rank's shares of them.
            pixels: what their tiles become on the device.
            micro_batches: how many this rank takes in a step.
            key: names the draws of a micro-batch by the step's and its own number.
        """
        self._feed, self._cutter, self._pixels, self._count, self._key = feed, cutter, pixels, micro_batches, key
        self._copies = Copies(pixels.device)
        self._thread = ThreadPoolExecutor(1, "next step", self._enter)
        self._next: tuple[int, Future[StepData]] | None = None

    def take(self, step: int, more: bool) -> StepData:
        """Return the data of a step, and begin to read those of the next.

        Args:
            step: its number, from 0.
            more: whether another step follows.

        Raises:
            DataError: see `DataFeed.step`.
        """
        if self._next is None:
            data = self._read(step)
        else:
            number, future = self._next
            assert number == step, f"step {number} was read, step {step} is asked for"
            self._next = None
            data = future.result()
        if more:
            self._next = step + 1, self._thread.submit(self._read, step + 1)
        return data

    def close(self, ended_well: bool) -> None:
        """Read no further; what is being read is waited for a while where all ranks are still there."""
        if self._next is not None and ended_well:
            wait([self._next[1]], _PATIENCE_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._next = None

    def _enter(self) -> None:
        if self._pixels.device.type == "cuda":
            torch.cuda.set_device(self._pixels.device)

    def _read(self, step: int) -> StepData:
        read = self._feed.step(self._count)
        largest = max((batch.input_ids.shape[0], sum(batch.num_tiles)) for batch in read.batches)
        cut: deque[MicroBatch] = deque()
        for index in range(self._count):
            batch = read.batches[index]
            share = self._cutter.cut(batch, self._key(step, index), self._feed.sets_of(batch))
            cut.append(self._copies.pinned(share))
        first = deque([self._copies.start(cut.popleft())])
        samples = tuple(map(PackSamples.of, read.batches))
        return StepData(read.totals, read.consumed, largest, samples, first, cut, self._copies, self._pixels)


def _popped(batches: deque[MicroBatch]) -> Iterator[MicroBatch]:
    while batches:
        yield batches.popleft()
