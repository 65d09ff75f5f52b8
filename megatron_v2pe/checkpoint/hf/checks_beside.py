"""Checks that run in threads beside the one that writes; what they find is raised before the result has its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


class ChecksBeside:
    """Checks of many tensors and files; use as a context manager.

    An error is raised by `look`, or at the latest when the block ends.
    """

    def __init__(self, threads: int = 1) -> None:
        """Start with nothing to check; with several threads, checks may end in another order than they begin."""
        self._thread = ThreadPoolExecutor(threads, "checks")
        self._running: deque[Future[None]] = deque()

    def __enter__(self) -> ChecksBeside:
        """Return the checks."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all checks; after an error, for the one at work."""
        try:
            while kind is None and self._running:
                self._running.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def add(self, check: Callable[Arguments, None], *arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        """Have a check made, in the order of the calls; its arguments stay in memory until then."""
        self._running.append(self._thread.submit(check, *arguments, **options))

    def look(self) -> None:
        """Raise the error of a check that is done, if it found one."""
        while self._running and self._running[0].done():
            self._running.popleft().result()
