"""The next step is read while one computes: one ahead, in order, with errors and counts where they belong."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch

from megatron_v2pe.data.types import Batch
from megatron_v2pe.errors import DataError
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.step_ahead import StepDataReader
from megatron_v2pe.v2pe.position_ids import Ticks

PER_TILE, IMAGE, SIDE = 4, 9, 28


def batch(number, tiles=0):
    """A pack of one document: `number` text tokens, then its tiles; every second token is supervised."""
    ids = torch.cat([torch.full((number,), 5), torch.full((tiles * PER_TILE,), IMAGE)])
    labels = torch.where(torch.arange(len(ids)) % 2 == 0, 1, -100)
    return Batch(
        input_ids=ids,
        labels=labels,
        loss_weights=(labels != -100).float() / 2,
        position_ticks=Ticks(torch.arange(len(ids)), 1),
        seqlens=(len(ids),),
        tiles=torch.full((tiles, SIDE, SIDE, 3), number, dtype=torch.uint8),
        num_tiles=(tiles,) if tiles else (),
        sources=(),
    )


class Loader:
    """Packs of 10, 11, 12, ... tokens; counts what was taken and from which thread."""

    def __init__(self, fails_at=None):
        self.taken, self.threads, self.fails_at = 0, [], fails_at
        self.read = threading.Semaphore(0)

    def __iter__(self):
        while True:
            if self.taken == self.fails_at:
                raise DataError("a pack is damaged")
            self.taken += 1
            self.threads.append(threading.current_thread())
            self.read.release()
            yield batch(9 + self.taken, tiles=self.taken % 2)

    def state_dict(self):
        return {"taken": self.taken, "skipped": {"damaged": self.taken}}

    @property
    def unusable(self):
        return 0

    @property
    def unreadable(self):
        return Counter(damaged=self.taken)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A world of one, without a process group."""
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda *_: 1)
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda counters, mine, **_: counters.__setitem__(0, mine)
    )


def opened(loader, micro_batches=2):
    feed = DataFeed(loader, None, [0], RankCoordinates(), max_skipped_samples=10**6)
    cutter = PackCutter(RankCoordinates(), IMAGE, PER_TILE)
    pixels = PixelSettings(torch.device("cpu"), torch.float32, ((0.0,) * 3, (1.0,) * 3))
    return feed, StepDataReader(
        feed, cutter, pixels, micro_batches, lambda step, index: DropPathKey(7, step * 10 + index)
    )


def lengths(data):
    return [made.input_ids.shape[0] - PER_TILE * (made.pixel_values is not None) for made in data.micro_batches()]


def test_steps_come_in_order_and_no_further_than_one_ahead():
    loader = Loader()
    _, steps = opened(loader)
    for step in range(4):
        data = steps.take(step, more=step < 3)
        assert lengths(data) == [10 + 2 * step, 11 + 2 * step]
        if step < 3:
            assert loader.read.acquire(timeout=60) and steps._next is not None
            steps._next[1].result(60)
        assert loader.taken == min(2 * (step + 2), 8), "one step ahead, and none after the last"
    steps.close(True)


def test_the_first_step_is_read_by_the_caller_the_others_by_one_thread():
    """Readers are children of the thread that asks first, and end with it."""
    loader = Loader()
    _, steps = opened(loader, micro_batches=1)
    for step in range(3):
        steps.take(step, more=step < 2)
    assert loader.threads[0] is threading.main_thread()
    assert loader.threads[1] is loader.threads[2] is not threading.main_thread()
    steps.close(True)


def test_what_is_consumed_is_what_was_used():
    loader = Loader()
    feed, steps = opened(loader)
    first = steps.take(0, more=True)
    assert steps._next is not None
    steps._next[1].result(60)
    assert loader.taken == 4 and feed.state_dict() == {"taken": 0, "skipped": {}}
    feed.commit(first.consumed)
    assert feed.state_dict() == {"taken": 2, "skipped": {"damaged": 2}}
    feed.commit(steps.take(1, more=False).consumed)
    assert feed.state_dict()["taken"] == 4
    steps.close(True)


def test_an_error_comes_where_its_step_would_have_come():
    loader = Loader(fails_at=4)
    _, steps = opened(loader)
    steps.take(0, more=True)
    steps.take(1, more=True)
    with pytest.raises(DataError, match="a pack is damaged"):
        steps.take(2, more=True)
    steps.close(False)


def test_totals_are_those_of_whole_packs():
    _, steps = opened(Loader())
    totals = steps.take(0, more=False).totals
    packs = [batch(10, 1), batch(11, 0)]
    assert (totals.packs, totals.tiles, totals.tokens) == (2, 1, 14 + 11)
    assert totals.squares == 14**2 + 11**2
    assert totals.supervised == 7 + 6
    assert totals.weight == sum(pack.loss_weights.sum().item() for pack in packs) == totals.denominator
    steps.close(True)


def test_tiles_are_normalised_where_they_are_used():
    _, steps = opened(Loader(), micro_batches=1)
    data = steps.take(0, more=False)
    [made] = data.micro_batches()
    assert made.pixel_values is not None and made.pixel_values.shape == (1, 3, SIDE, SIDE)
    assert torch.equal(made.pixel_values, torch.full_like(made.pixel_values, 10 / 255))
    assert made.drop_path is not None and (made.drop_path.seed, made.drop_path.pack) == (7, 0)
    assert data.largest == (14, 1)
    steps.close(True)


def test_nothing_is_held_longer_than_it_is_used():
    """A step of many packs with images: those that are done are gone."""
    import weakref

    _, steps = opened(Loader(), micro_batches=5)
    data = steps.take(0, more=False)
    seen = []
    for made in data.micro_batches():
        assert all(earlier() is None for earlier in seen)
        seen.append(weakref.ref(made))
        del made
    assert len(seen) == 5 and all(earlier() is None for earlier in seen)
    steps.close(True)
