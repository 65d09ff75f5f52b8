"""Items computed ahead: in order, errors in their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import pytest

from megatron_v2pe.data.prefetch import prefetch


def left():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_order_and_end():
    assert list(prefetch(iter(range(50)), 3)) == list(range(50))


def test_works_ahead_but_not_further():
    made = []
    items = prefetch((made.append(i) or i for i in count()), 4)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 6, "four wait in the queue, one for a place in it"
    items.close()


def test_errors_come_in_their_place():
    def broken():
        yield 1
        raise ValueError("here")

    items = prefetch(broken(), 4)
    assert next(items) == 1
    with pytest.raises(ValueError, match="here"):
        next(items)


def test_closing_ends_the_thread():
    items = prefetch(count(), 2)
    assert list(islice(items, 3)) == [0, 1, 2]
    items.close()
    deadline = time.monotonic() + 5
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()
