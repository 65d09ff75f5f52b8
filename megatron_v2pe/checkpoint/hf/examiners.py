"""Threads that look at the blocks of tensors beside the one that writes them."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from megatron_v2pe.checkpoint.hf.finite import Examination, Examined
from megatron_v2pe.checkpoint.hf.job import EXAMINERS


class Examiners:
    """Looks at tensors in several threads; use as a context manager.

    The blocks of one tensor go to one thread, in their order. A block's memory is used again once it was looked at, so
    whoever writes waits for a free one.
    """

    def __init__(self, buffers: int, size: int) -> None:
        """Make threads and buffers.

        Args:
            buffers: blocks in memory at once.
            size: bytes of a block.
        """
        self._threads = [ThreadPoolExecutor(1, "examiner") for _ in range(EXAMINERS)]
        self._given = [0] * EXAMINERS
        self._running: deque[Future[None]] = deque()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(memoryview(bytearray(size)))

    def __enter__(self) -> Examiners:
        """Return the examiners."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all threads; after an error, for what they are at."""
        try:
            while kind is None and self._running:
                self._running.popleft().result()
        finally:
            for thread in self._threads:
                thread.shutdown(cancel_futures=True)

    def buffer(self) -> memoryview:
        """Return a buffer that nobody uses, waiting for one; raise what a thread has met."""
        while self._running and self._running[0].done():
            self._running.popleft().result()
        return self._free.get()

    def thread_for(self, nbytes: int) -> int:
        """Return the thread that is to look at a tensor of `nbytes`: the one that was given least."""
        thread = self._given.index(min(self._given))
        self._given[thread] += nbytes
        return thread

    def give(self, thread: int, examination: Examination, content: memoryview, buffer: memoryview) -> None:
        """Have a block looked at.

        Args:
            thread: of the tensor.
            examination: of the tensor.
            content: the block, in `buffer` or elsewhere.
            buffer: to be used again after that.
        """

        def look() -> None:
            try:
                examination.update(content)
            finally:
                self._free.put(buffer)

        self._running.append(self._threads[thread].submit(look))

    def end(self, thread: int, examination: Examination, note: Callable[[Examined], None]) -> None:
        """Have the result of a tensor taken, once all its blocks were looked at."""
        self._running.append(self._threads[thread].submit(lambda: note(examination.result())))
