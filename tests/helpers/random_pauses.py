"""Run a command while threads and processes of it stand still at random, as on a machine whose processors are taken.

`python tests/helpers/random_pauses.py python -m pytest -q tests/launch` shows tests (and programs) that rely on who is
first: after every short while one thread, one process, or everything that the command has started is held for up to
`--longest` seconds. Linux only. The kernel holds threads for a tracer (`ptrace`), so that nothing of the command can
tell it from a slow machine: no signal arrives, and a process that a test has stopped itself stays so.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import time
import uuid
from contextlib import suppress

import psutil

MARK = "MEGATRON_V2PE_PAUSED_BY"
"""Environment variable that tells the command's processes from others."""

_BETWEEN = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""Program between this one and the command: a tracer that is the parent too would take the command's status away."""

_SEIZE, _INTERRUPT, _DETACH, _ALL_THREADS = 0x4206, 0x4207, 17, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def hold(threads: list[int], seconds: float) -> None:
    """Let threads, by their numbers in the system, stand still for that time; those that end meanwhile are gone.

    One may stop only after another has gone on: a parent in `vfork` waits for its child, which may be held.
    """
    held = {thread for thread in threads if _LIBC.ptrace(_SEIZE, thread, None, None) == 0}
    for thread in held:
        _LIBC.ptrace(_INTERRUPT, thread, None, None)
    signals = {thread: 0 for thread in held}
    running, until = set(held), time.monotonic() + seconds
    while held:
        for thread in list(held):  # one that is killed ends for its parent only when its tracer has seen it
            with suppress(ChildProcessError):
                found, status = os.waitpid(thread, os.WNOHANG | _ALL_THREADS)
                if found and os.WIFSTOPPED(status):
                    running.discard(thread)
                    if status >> 16 == 0:  # a signal that came before the stop, to be delivered when it goes on
                        signals[thread] = os.WSTOPSIG(status)
                if not found or os.WIFSTOPPED(status):
                    continue
            held.discard(thread)
            running.discard(thread)
        if time.monotonic() >= until:
            for thread in held - running:
                if _LIBC.ptrace(_DETACH, thread, None, signals[thread]):
                    with suppress(ChildProcessError):
                        os.waitpid(thread, _ALL_THREADS)
            held &= running
        time.sleep(0.01)


def of_command(mark: str) -> list[list[int]]:
    """Return the threads of every process that has the mark in its environment."""
    found: list[list[int]] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append([int(name) for name in os.listdir(f"/proc/{process.pid}/task")])
    return found


def main() -> int:
    """Run the command line's command under pauses; return its status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of a pause (default: %(default)s)")
    parser.add_argument("--between", type=float, default=1.0, help="seconds between two (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and choices (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    draws, mark, pauses, total = random.Random(arguments.seed), uuid.uuid4().hex, 0, 0.0
    line = [sys.executable, "-c", _BETWEEN, "env", f"{MARK}={mark}", *arguments.command]
    with subprocess.Popen(line) as running:
        while running.poll() is None:
            time.sleep(draws.uniform(0, 2 * arguments.between))
            processes, seconds = of_command(mark), draws.uniform(0, arguments.longest)
            if not processes:
                continue
            kind = draws.random()
            one = draws.choice(processes)
            if kind < 0.4:
                chosen = one[:1] if draws.random() < 0.5 else [draws.choice(one)]
            else:
                chosen = one if kind < 0.9 else [thread for process in processes for thread in process]
            hold(chosen, seconds)
            pauses, total = pauses + 1, total + seconds
    print(f"{pauses} pauses, {total:.0f} s in all, seed {arguments.seed}", file=sys.stderr)
    return running.returncode


if __name__ == "__main__":
    sys.exit(main())
