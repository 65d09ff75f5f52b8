"""Host memory of a process and of the processes it has started, such as the readers of its data, from Linux's `/proc`.

A few microseconds a process. A page that a reader shares with the process it was forked from counts in both, so that
the sum is an upper bound; pages of files and of shared memory count once, with the process itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return the bytes of this process and its children that lie in memory; 0 where the system does not say."""
    total = _pages("self")[0]
    for child in _children():
        resident, shared = _pages(child)
        total += resident - shared
    return total * _PAGE


def _pages(process: str) -> tuple[int, int]:
    """Return a process's pages in memory, and how many of them are of files or shared memory; 0 if it is gone."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/statm").read_bytes().split()
        return int(fields[1]), int(fields[2])
    return 0, 0


def _children() -> list[str]:
    """Return the numbers of the processes that any thread of this one has started."""
    found: list[str] = []
    with suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with suppress(OSError):
                found += Path(f"/proc/self/task/{task}/children").read_text().split()
    return found
