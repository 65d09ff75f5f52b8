"""The work of a build, in order of its tasks, in worker processes or in this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from megatron_v2pe.data.indexed import work
from megatron_v2pe.data.processes import Processes


class Pool:
    """Worker processes that know what is built; use as a context manager."""

    def __init__(self, worker: work.Worker, processes: int) -> None:
        """Start `processes`; 0: everything happens in this one."""
        self._worker, self._here = worker, not processes
        self._processes = Processes(processes, work.__name__, work.start, (worker,))

    def __enter__(self) -> Pool:
        """Return the pool."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes; work not begun is dropped."""
        self._processes.__exit__(*error)

    def results(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `Worker.method(*task)` of each task, in order.

        Raises:
            DataError: a worker process was killed.
        """
        function = partial(work.do, self._worker, method) if self._here else partial(work.call, method)
        for _, result in self._processes.map(function, tasks):
            yield result
