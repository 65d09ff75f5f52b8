"""Run an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class _Failed:
    error: BaseException


def prefetch(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield the items in order, up to `depth` of them computed ahead.

    The thread starts with the first item asked for and stops when the generator is closed, or the main thread has
    ended: the interpreter waits for it, for a thread that is cut off inside of PyTorch takes the process down. An error
    is raised where the item it took the place of would have come.
    """
    ready: queue.Queue[Item | _Failed] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def stopping() -> bool:
        return closed.is_set() or not threading.main_thread().is_alive()

    def put(item: Item | _Failed) -> None:
        while not stopping():
            try:
                return ready.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopping():
                    return
        except BaseException as error:  # handed to the consumer, who raises it
            put(_Failed(error))
        else:
            put(_Failed(StopIteration()))

    threading.Thread(target=work, name="prefetch").start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _Failed):
                if isinstance(item.error, StopIteration):
                    return
                raise item.error
            yield item
    finally:
        closed.set()
