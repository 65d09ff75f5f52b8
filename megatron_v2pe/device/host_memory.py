"""Host memory: what a process and those it has started hold, by Linux's `/proc`, and what is left on the machine.

A few microseconds a process. A page that a reader shares with the process it was forked from counts in both, so that
the sum is an upper bound; pages of files and of shared memory count once, with the process itself.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
import torch.distributed as dist

_CGROUP = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return the bytes of this process and its children that lie in memory; 0 where the system does not say."""
    total = _pages("self")[0]
    for child in _children():
        resident, shared = _pages(child)
        total += resident - shared
    return total * _PAGE


def available_bytes() -> int:
    """Return the bytes that this machine can still give, within the limit of a container where there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such limit
        return free
    cached = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))  # given back when asked for
    return min(free, limit - used + cached)


def needed_and_free(place: str, need: int, free: int, group: dist.ProcessGroup) -> list[tuple[str, int, int]]:
    """Return for every place, a machine or one of its devices, the bytes its ranks need together, and the free ones.

    Args:
        place: where this rank needs memory.
        need: bytes this rank is about to take.
        free: bytes that are free there.
        group: ranks that call this, all of them.
    """
    mine = (place, need, free)
    everyone: list[tuple[str, int, int]] = [mine] * group.size()
    if group.size() > 1:
        dist.all_gather_object(everyone, mine, group=group)
    return [
        (
            one,
            sum(number for name, number, _ in everyone if name == one),
            min(number for name, _, number in everyone if name == one),
        )
        for one in dict.fromkeys(name for name, _, _ in everyone)
    ]


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
