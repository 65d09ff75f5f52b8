"""A function applied to many pieces of work in order, in worker processes or in this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from megatron_v2pe.base.orphans import alive, end_when
from megatron_v2pe.errors import LostProcessError

_AHEAD = 4
"""Pieces handed out per process beyond the one whose result is waited for; bounds what lies in memory."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class Processes:
    """Worker processes; use as a context manager."""

    def __init__(
        self, number: int, module: str, start: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        """Start processes.

        Args:
            number: how many; 0: everything happens in this one.
            module: imported once for all of them.
            start: called in each with `arguments` before any work.
            arguments: of `start`.
        """
        self._number = number
        self._executor: ProcessPoolExecutor | None = None
        if number:
            # Not plain fork: the caller may have threads. The server is started once and forks the workers.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([module])
            self._executor = ProcessPoolExecutor(number, context, _begin, (os.getpid(), start, arguments))

    def __enter__(self) -> Processes:
        """Return the processes."""
        return self

    def __exit__(self, *error: object) -> None:
        """End them; work not begun is dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yield each task with the result of the function, in order.

        Args:
            function: of a module, so that other processes find it.
            tasks: taken as they are needed; sent to other processes.

        Raises:
            LostProcessError: a worker process was killed.
        """
        if self._executor is None:
            yield from ((task, function(task)) for task in tasks)
            return
        pending: deque[tuple[Task, Future[Result]]] = deque()
        try:
            for task in tasks:
                pending.append((task, self._executor.submit(function, task)))
                if len(pending) > self._number * _AHEAD:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise LostProcessError(
                "a worker process ended without a word, killed for its memory perhaps; run the same command again with "
                "fewer workers"
            ) from error


def _begin(parent: int, start: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    """Set up a worker process; it ends when the process that asked for it is gone, killed perhaps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who gives out the work
    end_when(lambda: not alive(parent), lambda: os._exit(1))
    if start is not None:
        start(*arguments)
