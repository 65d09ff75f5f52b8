"""Run the project's tools and launchers: one after the other, or several side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parents[2]
_INHERITED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "NNODES", "NODE_RANK")
_INHERITED += ("PARTITION", "STRIDE", "OUT", "GROUP", "MASTER_ADDR")
"""What a launcher around this process may have set; it is not meant for those started here."""
_TOLD = 3000
"""Characters printed from the end of a file of messages when its command has failed."""


@dataclass(frozen=True)
class Command:
    """A command line, what it adds to the environment, and where its messages go."""

    line: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    messages: Path | None = None
    """A file; None: the console."""


def tool(name: str, *arguments: object) -> Command:
    """Return the command of one of the project's tools."""
    return Command([os.environ.get("PYTHON", "python3"), str(ROOT / "tools" / name), *map(str, arguments)])


def launcher(script: str, environment: dict[str, str], *arguments: object, messages: Path | None = None) -> Command:
    """Return the command of one of the project's launchers, on a free port."""
    line = ["sh", str(ROOT / "scripts" / script), *map(str, arguments)]
    return Command(line, {"MASTER_PORT": "0", **environment}, messages)


def execute(*commands: Command) -> None:
    """Run commands at the same time, to the end of all; see `execute_lanes`."""
    execute_lanes(*((command,) for command in commands))


def execute_lanes(*lanes: Sequence[Command]) -> None:
    """Run lanes at the same time, and in each its commands one after the other.

    Raises:
        subprocess.CalledProcessError: a command failed, and its lane ended there; other lanes have run to their ends.
            The end of what it said into a file has been printed.
    """
    children = _Children()
    with ThreadPoolExecutor(len(lanes)) as pool:
        ends = [pool.submit(children.run, lane) for lane in lanes]
        try:
            wait(ends)
        except KeyboardInterrupt:  # the children end their processes; they hold the folder's lock until then
            children.terminate()
            raise
    for end in ends:
        end.result()


class _Children:
    """The processes that run now, and whether further ones may start."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, lane: Sequence[Command]) -> None:
        for command in lane:
            status = self._run(command)
            if status is None:
                return
            if status:
                if command.messages is not None:
                    print(command.messages.read_text(errors="replace")[-_TOLD:], file=sys.stderr)
                raise subprocess.CalledProcessError(status, command.line)

    def _run(self, command: Command) -> int | None:
        """Run a command; return its status, None if it was not to start any more."""
        clean = {name: value for name, value in os.environ.items() if name not in _INHERITED}
        with nullcontext() if command.messages is None else open(command.messages, "wb") as stream:
            with self._lock:
                if self._stopped:
                    return None
                environment = {**clean, **command.environment}
                child = subprocess.Popen(
                    command.line, env=environment, cwd=ROOT, close_fds=False, stdout=stream, stderr=stream
                )
                self._running.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:  # `terminate` goes through the set, and what it ends comes here at once
                    self._running.discard(child)

    def terminate(self) -> None:
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()
