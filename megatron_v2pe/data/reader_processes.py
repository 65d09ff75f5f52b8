"""The loader's reader processes: how they are started, what they ignore, and what ends them when they do not answer."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import AuthenticationError, popen_fork
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.process import BaseProcess
from types import TracebackType

from megatron_v2pe.base.orphans import killed_with_parent


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore signals in a reader: one to the process group asks the run to save and stop, which needs its readers."""
    killed_with_parent()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def hide_lost_connections() -> None:
    """Print nothing where a reader ends in the middle of a request: whoever ended it says so.

    The thread of `multiprocessing` that hands out tensors would call `sys.excepthook` for it, and goes on.
    """
    usual = sys.excepthook
    if getattr(usual, "quiet", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lost = issubclass(kind, (EOFError, OSError, AuthenticationError))
        if not (lost and threading.current_thread() is not threading.main_thread()):
            usual(kind, error, trace)

    vars(hook)["quiet"] = True
    sys.excepthook = hook


class _Ending(popen_fork.Popen):
    """A forked process that can be ended: it takes no notice of SIGTERM."""

    def terminate(self) -> None:
        self.kill()


class _Reader(ForkProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> popen_fork.Popen:  # noqa: N802  multiprocessing's name
        return _Ending(process_obj)


class Readers(ForkContext):
    """How readers are started: as PyTorch does, but Python can end them at its own end."""

    Process = _Reader


_NOTICED_SECONDS = 7.0
"""Seconds after which PyTorch would have noticed that a reader has ended: it looks every five."""


_GONE_SECONDS = 10.0
"""Seconds for a process whose pipe is closed to be gone: on a busy machine its end comes late."""


class Patience:
    """A limit on each wait for the readers, as a context around it: where one does not answer, all of them are ended.

    PyTorch's own limit ends when a reader begins to answer. A reader that freezes in the middle of an answer, or before
    it hands out the memory its answer lies in, would be waited for without end. So would one that is killed there: the
    signal of its end reaches the main thread, which need not be the one that reads.
    """

    def __init__(self, seconds: float, readers: Sequence[BaseProcess]) -> None:
        """Start a thread that looks every second.

        Args:
            seconds: how long an answer is waited for.
            readers: the processes.
        """
        self.lost = False
        """A reader has not answered, and all were ended."""
        self.dead = False
        """A reader has ended, PyTorch has not noticed, and all were ended."""
        self._seconds, self._readers = seconds, readers
        self._since: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="patience with readers", daemon=True).start()

    def __enter__(self) -> None:
        """Begin to count."""
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self._since = None

    def cut_off(self) -> bool:
        """Tell whether a reader has ended; what it wrote may end an instant before it does."""
        until = time.monotonic() + _GONE_SECONDS
        while not any(map(_has_ended, self._readers)):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def end(self) -> None:
        """Stop the thread."""
        self._ended.set()

    def _look(self) -> None:
        noticed: float | None = None
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            since, now = self._since, time.monotonic()
            if since is None:
                noticed = None
                continue
            if noticed is None and any(map(_has_ended, self._readers)):
                noticed = now
            self.dead = noticed is not None and now - noticed > _NOTICED_SECONDS
            self.lost = not self.dead and now - since > self._seconds
            if self.dead or self.lost:
                for reader in self._readers:
                    reader.kill()
                return


def _has_ended(reader: BaseProcess) -> bool:
    """Tell whether a process has ended; its status is left for PyTorch to find."""
    try:
        return os.waitid(os.P_PID, reader.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
    except AttributeError:  # a system without `waitid`
        return not reader.is_alive()
