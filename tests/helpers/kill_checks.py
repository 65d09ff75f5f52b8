"""The frame of checks that kill a program at random moments and resume it: their command line, and runs to the end."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.tool_runs import run


def run_check(about: str, check: Callable[[Path, int, random.Random], int], argv: Sequence[str] | None) -> int:
    """Read a check's command line and run it.

    Args:
        about: its description.
        check: given a new folder, the number of kills, and where their moments come from; returns its exit status.
        argv: the command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="new folder for everything; default: a temporary one")
    parser.add_argument("--kills", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary) / "check"
        out.mkdir(parents=True)
        return check(out, arguments.kills, random.Random(arguments.seed))


def finish(line: Sequence[str], log: Path) -> None:
    """Run a command to its end, or end this process with what it said."""
    finished = run(line, log, timeout=900)
    if finished.status:
        sys.exit(f"{log}: failed\n{finished.output[-3000:]}")
