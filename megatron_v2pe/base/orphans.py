"""Processes that end when the process they work for has ended, whatever ended it; and those that ended before."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import LostProcessError

LAUNCHER = "MEGATRON_V2PE_LAUNCHER"
"""Environment variable in which our launcher tells its processes its number."""

LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return not os.path.isdir("/proc/self")  # no such file system here: the signal has answered


def killed_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; does nothing where it cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def let_children_end() -> None:
    """Take no notice of children that end from now on; for a process that is about to end itself.

    PyTorch's handler of SIGCHLD raises an error when a reader was killed, wherever the main thread is: also in the
    middle of the report of what has ended the run, and while this process ends its readers. Other threads than the
    main one cannot change a handler and leave it.
    """
    while threading.current_thread() is threading.main_thread():
        try:
            if callable(signal.getsignal(signal.SIGCHLD)):
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return
        except RuntimeError:  # that of a child which has ended just now
            continue


def end_when(has_ended: Callable[[], bool], end: Callable[[], None]) -> None:
    """Call `end` in a thread once `has_ended` returns true; it is asked every second."""

    def look() -> None:
        while not has_ended():
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=look, name="orphan watch", daemon=True).start()


def under_launcher() -> bool:
    """Tell whether a launcher's variables are set: ours, torchrun's or srun's."""
    return any(name in os.environ for name in (LAUNCHER, "RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"))


def beside_first() -> bool:
    """Tell whether a launcher has started this process beside another, which is the first."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "SLURM_PROCID"))


def end_with_launcher(status: int) -> None:
    """End this process soon after the launcher that started it, if one did: ours, torchrun or srun.

    Without a launcher nothing happens: a shell may end before a program it has started in the background.

    Args:
        status: exit status of this process then.
    """
    environ = os.environ
    ours = int(environ[LAUNCHER]) if is_whole_number(environ.get(LAUNCHER, "")) else None
    if ours is None and "TORCHELASTIC_RUN_ID" not in environ and "SLURM_PROCID" not in environ:
        return
    parent = os.getppid()
    if ours is not None:
        killed_with_parent()

    def launcher_has_ended() -> bool:
        return os.getppid() != parent or (ours is not None and not alive(ours))

    def end() -> None:
        os.write(2, b"error: the launcher of this process is gone, so it ends; the same command goes on\n")
        os._exit(status)

    if launcher_has_ended():
        end()
    end_when(launcher_has_ended, end)


def lost_reader(error: RuntimeError) -> LostProcessError:
    """Return the error for a reader of training data that has ended or hangs; PyTorch has noticed."""
    ours = LostProcessError(
        f"a reader process has ended without a word, killed for its memory perhaps ({str(error).splitlines()[0]}); "
        "the same command goes on; with a lower data.num_workers it needs less memory"
    )
    ours.__cause__ = error
    return ours
