"""Break everything on purpose with many seeds: damage, attacks, wrong values, wrong command lines.

    .venv/bin/python scripts/check_breakage.py [--seeds N] [--first SEED] [-k WORDS]

Runs the suites of tests/breakage once per seed and stops at the first that fails. The tests run them with one seed; it
can be set there too: BREAKAGE_SEED=7 python -m pytest tests/breakage. About three minutes a seed on two cores. Kills in
every phase of a run: scripts/check_ends.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from megatron_v2pe.base.command import run_tool  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Run the suites; return 0 if none failed with any seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=100, metavar="SEED", help="the first (default: %(default)s)")
    parser.add_argument("-k", metavar="WORDS", default="", help="only tests whose names match, as in pytest")
    arguments = parser.parse_args(argv)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        print(f"== seed {seed}", flush=True)
        line = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "tests/breakage",
            *(["-k", arguments.k] if arguments.k else []),
        ]
        status = subprocess.run(line, cwd=ROOT, env={**os.environ, "BREAKAGE_SEED": str(seed)}).returncode
        if status:
            print(f"seed {seed} failed; again: BREAKAGE_SEED={seed} {' '.join(line)}", file=sys.stderr)
            return status
    print(f"{arguments.seeds} seeds from {arguments.first} on: nothing silent, no traceback, no code run")
    return 0


if __name__ == "__main__":
    run_tool(main)
