"""Jobs of several processes, watched from outside: their processes, the ports they listen at, their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from helpers.tool_runs import started, wait_until

MARK = "MEGATRON_V2PE_JOB_MARK"
"""Environment variable all processes of a job have in common, with no others."""


class Job:
    """A started command with everything it has started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, mark: str) -> None:
        """Remember what tells its processes from others."""
        self.process, self.log, self._mark = process, log, mark

    @property
    def output(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Return its processes that run."""
        found: list[psutil.Process] = []
        for one in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if one.environ().get(MARK) == self._mark and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the process of each rank; the command itself, where no launcher started it."""
        found: dict[int, psutil.Process] = {}
        for one in self.processes():
            with suppress(psutil.Error):
                rank, parent = one.environ().get("RANK", ""), one.parent()
                if rank and (parent is None or parent.environ().get("RANK") != rank):
                    found[int(rank)] = one
        return found or {0: psutil.Process(self.process.pid)}

    def readers(self) -> list[psutil.Process]:
        """Return the processes its ranks have started."""
        return [child for rank in self.ranks() for child in self.readers_of(rank)]

    def readers_of(self, rank: int) -> list[psutil.Process]:
        """Return the processes that one rank has started."""
        return self.ranks()[rank].children(recursive=True)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something that must come before the job's end."""
        wait_until(done, [self.process], self.log)

    def end(self, seconds: float) -> tuple[int, float]:
        """Wait until every process is gone; return the exit status and the seconds it took.

        Raises:
            AssertionError: something is left, named.
        """
        began = time.monotonic()
        status = self.process.wait(seconds)
        while left := self.processes():
            assert time.monotonic() - began < seconds, f"left: {left}; {self.output[-3000:]}"
            time.sleep(0.1)
        return status, time.monotonic() - began

    def listeners(self) -> list[str]:
        """Return the addresses its processes listen at, as `/proc` has them."""
        found: list[str] = []
        for one in self.processes():
            with suppress(psutil.Error):
                found += [c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                found += [c.laddr.ip for c in one.net_connections("udp") if c.laddr]
        return found


@contextmanager
def job(line: Sequence[str], log: Path, more: Mapping[str, str] | None = None) -> Iterator[Job]:
    """Start a command as a job; what is left of it at the end is killed."""
    mark = uuid.uuid4().hex
    with started(line, log, more={**(more or {}), MARK: mark}) as process:
        one = Job(process, log, mark)
        try:
            yield one
        finally:
            for left in one.processes():
                with suppress(psutil.Error, ProcessLookupError):
                    os.kill(left.pid, signal.SIGKILL)
