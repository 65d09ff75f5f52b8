"""Items computed ahead: in order, errors in their place, and no thread left behind."""

from __future__ import annotations

import subprocess
import sys
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
    deadline = time.monotonic() + 60
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
    before = left()  # loaders of other tests that nobody has collected yet have such threads
    items = prefetch(count(), 2)
    assert list(islice(items, 3)) == [0, 1, 2]
    (mine,) = set(left()) - set(before)
    items.close()
    mine.join(60)
    assert not mine.is_alive()


def test_a_process_ends_whole_while_its_thread_works(tmp_path):
    """A daemon thread would be cut off inside of PyTorch, and the process aborted (status -6)."""
    program = """
import torch
from megatron_v2pe.data.prefetch import prefetch

def work():
    while True:
        yield torch.randn(300, 300).matmul(torch.randn(300, 300)).sum()

items = prefetch(work(), 2)
print(next(items) is not None)
"""
    for _ in range(3):
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert (finished.returncode, finished.stdout) == (0, "True\n"), finished.stderr[-500:]
