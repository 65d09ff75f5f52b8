"""Compare the losses of two runs step by step, and print how fast they were and how much memory they took.

    python examples/long_context/compare.py "2 processes" RUN/logs/metrics.jsonl "1 process" OTHER/logs/metrics.jsonl

The steps both runs have are compared. The exit status is 0 if all losses agree to 1e-5 of their size, 1 if one does
not, 2 if a file is missing or wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.train.metrics_file import read_metrics  # noqa: E402

Rows = dict[int, dict[str, Any]]


def read_rows(path: Path) -> Rows:
    """Return the rows of a `metrics.jsonl` by step.

    Raises:
        ValueError: a line that is no row of metrics.
    """
    rows = read_metrics(path, numbers=("loss", "tokens", "seconds", "memory_gib"))
    return {row["iteration"]: row for row in rows}


def difference(first: float, second: float) -> float:
    """Return how far two losses are apart, relative to the second."""
    return abs(first - second) / max(abs(second), 1e-30)


def summary(rows: Rows, steps: list[int]) -> tuple[float, float]:
    """Return tokens per second over `steps` but the first, which also warms up, and the peak memory up to the last."""
    timed = steps[1:] or steps
    speed = sum(rows[step]["tokens"] for step in timed) / sum(rows[step]["seconds"] for step in timed)
    return speed, rows[steps[-1]]["memory_gib"]


def main(argv: list[str] | None = None) -> int:
    """Read the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the losses of two runs step by step.")
    parser.add_argument("names_and_files", nargs=4, metavar="NAME FILE", help="two runs: a name and its metrics.jsonl")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative difference allowed (default: 1e-5)")
    args = parser.parse_args(argv)
    name, file, other_name, other_file = args.names_and_files
    try:
        rows, other = read_rows(Path(file)), read_rows(Path(other_file))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    steps = sorted(rows.keys() & other.keys())
    if not steps:
        print(f"error: {file} and {other_file} have no step in common", file=sys.stderr)
        return 2
    print(f"{'step':>4}  {'tokens':>7}  {'loss, ' + name:>20}  {'loss, ' + other_name:>20}  {'difference':>10}")
    worst = 0.0
    for step in steps:
        apart = difference(rows[step]["loss"], other[step]["loss"])
        worst = apart if not apart <= worst else worst  # a NaN is the worst
        losses = f"{rows[step]['loss']:>20.7f}  {other[step]['loss']:>20.7f}"
        print(f"{step:>4}  {rows[step]['tokens']:>7,.0f}  {losses}  {apart:>10.1e}")
    print()
    for title, these in ((name, rows), (other_name, other)):
        speed, memory = summary(these, steps)
        print(f"{title:<12}  {speed:>7,.0f} tokens/s  {memory:>6.2f} GiB peak memory of a process")
    if not worst <= args.tolerance:
        print(f"error: losses differ by {worst:.1e}, allowed are {args.tolerance:.0e}", file=sys.stderr)
        return 1
    print(f"losses of {len(steps)} steps agree: {worst:.1e} apart at most, allowed are {args.tolerance:.0e}")
    return 0


if __name__ == "__main__":
    run_tool(main)
