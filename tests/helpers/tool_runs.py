"""The command-line tools as a user starts them: in processes of their own, output in files, all ended at the end.

Output goes to files and every command has a process group of its own, so that a killed command's orphans can neither
hold a pipe open nor outlive the test.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from helpers.warm_python import shared_warm_python
from megatron_v2pe.train import metrics_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    output: str
    """Standard output and standard error together."""


def command(script: str, *arguments: str, processes: int = 0) -> list[str]:
    """Return the command line of a script of the checkout, under the launcher where `processes` are given."""
    path = str(ROOT / script)
    if not processes:
        return [sys.executable, path, *arguments]
    return [sys.executable, "-m", "megatron_v2pe.device.torchrun", "--nproc-per-node", str(processes), path, *arguments]


def free_port() -> int:
    """Return a TCP port nobody listens at.

    The system gives ports above these to every program that asks for any, or connects: it would give this one away
    before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


@contextmanager
def started(
    line: Sequence[str], log: Path, cwd: Path | None = None, more: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, `more` in its environment; what is left of its process group at the end is killed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        **(more or {}),
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            line, stdout=stream, stderr=subprocess.STDOUT, cwd=cwd or ROOT, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and everything it started, at once; torchrun's workers have sessions of their own.

    All are gone when this returns: what comes next may want the folder that one of them held.
    """
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    for child in children:
        _wait_for_end(child)


def _wait_for_end(process: psutil.Process) -> None:
    """Wait until a process that was killed has no threads any more; its parent, which may be gone too, fetches it."""
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1):
            time.sleep(0.01)


def wait_until(
    done: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], log: Path, seconds: float = 600
) -> None:
    """Wait for what a command does before its end, however slow the machine is.

    Raises:
        AssertionError: all processes have ended without it, or the time is over; says how the log ends.
    """
    deadline = time.monotonic() + seconds
    while True:
        late, ended = time.monotonic() > deadline, all(one.poll() is not None for one in processes)
        if done():  # looked at last: it may have come just before the end
            return
        assert not late and not ended, log.read_text(errors="replace")[-3000:]
        time.sleep(0.02)


def run(line: Sequence[str], log: Path, cwd: Path | None = None, timeout: float = 1200) -> Finished:
    """Run a command to its end; if Python runs it, then one that has imported the package before."""
    more: dict[str, str] = {}
    if line[0] == sys.executable and not line[1].startswith("-S"):
        warm = shared_warm_python()
        line, more = [warm, *line[1:]], {"PYTHON": warm, "PYTHON_EXEC": warm}  # of launchers, of torchrun's workers
    with started(line, log, cwd, more) as process:
        status = process.wait(timeout)
    return Finished(status, log.read_text(errors="replace"))


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's `metrics.jsonl` that count."""
    return metrics_file.read_metrics(run_folder / "logs" / metrics_file.METRICS)


def settings(tiny: Path, save: Path, **changes: object) -> list[str]:
    """Return the arguments of a short run."""
    values = {
        "model.model_name_or_path": tiny / "hf",
        "data.meta_path": tiny / "data" / "meta.json",
        "data.max_seq_length": 400,
        "data.max_packed_tokens": 700,
        "data.max_dynamic_patch": 6,
        "data.num_images_expected": 20,
        "checkpoint.save": save,
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--recipe", "debug", *(f"{name}={value}" for name, value in values.items())]
