"""Runs the work of a build in order of its tasks, in worker processes or in this one."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from megatron_v2pe.data.indexed import work
from megatron_v2pe.errors import DataError

_AHEAD = 4
"""Tasks handed out per process beyond the one whose result is waited for; bounds what lies in memory."""


class Pool:
    """Worker processes; use as a context manager."""

    def __init__(self, worker: work.Worker, processes: int) -> None:
        """Start `processes`; 0: everything happens in this one."""
        self._worker, self._processes = worker, processes
        self._executor: ProcessPoolExecutor | None = None
        if processes:
            # Not plain fork: the caller may have threads. The server is started once and forks the workers.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([work.__name__])
            self._executor = ProcessPoolExecutor(processes, context, work.start, (worker,))

    def __enter__(self) -> Pool:
        """Return the pool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes; after an error without waiting for tasks not begun."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def results(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `Worker.method(*task)` of each task, in order.

        Raises:
            DataError: a worker process was killed.
        """
        if self._executor is None:
            for task in tasks:
                yield getattr(self._worker, method)(*task)
            return
        pending: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                pending.append(self._executor.submit(work.call, method, *task))
                if len(pending) > self._processes * _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process of the build ended without a word, killed for its memory perhaps; run the same "
                "command again with fewer workers, it goes on from here"
            ) from error
