"""The threads of a conversion: one reads, one writes what was read, and others look at it while it is in memory.

Bytes are read once, into a buffer that the writing thread and the examiners share; it is used again when the last of
them lets go of it.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from megatron_v2pe.checkpoint.appended_file import PAGE
from megatron_v2pe.checkpoint.hf.finite import Examination, Examined
from megatron_v2pe.checkpoint.hf.job import EXAMINERS


class SharedBuffer:
    """Memory that several threads use at a time; it begins at a page."""

    def __init__(self, free: queue.SimpleQueue[SharedBuffer]) -> None:
        """Begin without memory; `free` gets the buffer back when nobody uses it."""
        self._free = free
        self._memory = memoryview(b"")
        self._users, self._lock = 0, threading.Lock()

    def of_size(self, size: int, place: int = 0) -> memoryview:
        """Return `size` bytes of it, which lie against a page as byte `place` of a file does.

        `AppendedFile` writes them from here, without a copy, if they go to that place.
        """
        skipped = place % PAGE
        if len(self._memory) < skipped + size:
            self._memory = memoryview(b"")  # before there is more, so that both are not there at once
            self._memory = memoryview(mmap.mmap(-1, -(-(size + PAGE) // PAGE) * PAGE))
        return self._memory[skipped : skipped + size]

    def hold(self) -> None:
        """Count one more user."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self._free.put(self)


class Pipeline:
    """Threads and buffers; use as a context manager, which waits for all that was given to the threads.

    What a thread has met is raised by `buffer`, or at the latest when the block ends.
    """

    def __init__(self, buffers: int) -> None:
        """Make threads and buffers.

        Args:
            buffers: number of buffers; each grows to what is asked of it.
        """
        self._examiners = [ThreadPoolExecutor(1, "examiner") for _ in range(EXAMINERS)]
        self._writer = ThreadPoolExecutor(1, "writer")
        self._given = [0] * EXAMINERS
        self._running: deque[Future[None]] = deque()
        self._free: queue.SimpleQueue[SharedBuffer] = queue.SimpleQueue()
        self._write_failed = False
        for _ in range(buffers):
            self._free.put(SharedBuffer(self._free))

    def __enter__(self) -> Pipeline:
        """Return the pipeline."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all threads; after an error, for what they are at."""
        try:
            if kind is None:
                self.drain()
        finally:
            for thread in (*self._examiners, self._writer):
                thread.shutdown(cancel_futures=True)

    def buffer(self) -> SharedBuffer:
        """Return a buffer that nobody else uses, held by the caller, waiting for one; raise what a thread has met."""
        buffer = self._free.get()
        buffer.hold()
        while self._running and self._running[0].done():
            self._running.popleft().result()
        return buffer

    def drain(self) -> None:
        """Wait until all is done that was given to the threads; raise what one has met."""
        while self._running:
            self._running.popleft().result()

    def examiner_for(self, nbytes: int) -> int:
        """Return the thread that is to look at a tensor of `nbytes`: the one that was given least."""
        thread = self._given.index(min(self._given))
        self._given[thread] += nbytes
        return thread

    def examine(self, thread: int, work: Callable[[], object], buffer: SharedBuffer | None = None) -> None:
        """Have an examiner do some work, in the order of the calls.

        Args:
            thread: see `examiner_for`.
            work: what it does.
            buffer: what the work reads, if it reads one.
        """
        self._submit(self._examiners[thread], work, buffer)

    def conclude(self, thread: int, examination: Examination, note: Callable[[Examined], None]) -> None:
        """Have the result of a tensor taken, once an examiner has looked at all of it."""
        self.examine(thread, lambda: note(examination.result()))

    def write(self, work: Callable[[], object], buffer: SharedBuffer | None = None) -> None:
        """Have the writing thread do some work, in the order of the calls; nothing is written after what has failed."""

        def unless_failed() -> None:
            if self._write_failed:
                return
            try:
                work()
            except BaseException:
                self._write_failed = True
                raise

        self._submit(self._writer, unless_failed, buffer)

    def _submit(self, thread: ThreadPoolExecutor, work: Callable[[], object], buffer: SharedBuffer | None) -> None:
        if buffer is not None:
            buffer.hold()

        def then_release() -> None:
            try:
                work()
            finally:
                if buffer is not None:
                    buffer.release()

        self._running.append(thread.submit(then_release))
