"""Put the tables of docs/evaluation_data.md together from the README of each family of benchmarks, and their numbers.

    .venv/bin/python scripts/write_benchmark_page.py

Of a family's README.md it takes the table that begins with `| name |`, and the one that begins with `| published |`
where there is one; numbers of questions come from the benchmarks. A test says when the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron_v2pe.base.command import run_tool  # noqa: E402
from megatron_v2pe.evaluate.benchmark import Benchmark  # noqa: E402
from megatron_v2pe.evaluate.benchmark_names import create  # noqa: E402
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS  # noqa: E402

PAGE = ROOT / "docs" / "evaluation_data.md"
FAMILIES = ROOT / "megatron_v2pe" / "evaluate" / "families"
GENERAL = (
    "| results are appended to shared files | the runner's matter | the same |",
)  # of the published code, and of no family
MOST_NAMES = 6


def main() -> int:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def page(text: str) -> str:
    """Return the text of the page with its tables as they are to be."""
    tables = {
        "data": _table("name", "files", "obtain", "prompt", "tiles, new", "scorer"),
        "not followed": [*_table("published", "here", "mode `reference`"), *GENERAL],
        "numbers": ["| benchmark | questions | who says so |", "|---|---|---|", *_numbers()],
        "no number": _without_number(),
    }
    for name, lines in tables.items():
        begin, end = f"<!-- families: {name} -->\n", "<!-- end -->"
        before, _, behind = text.partition(begin)
        body = "\n".join(["", *lines, "", ""])  # a table needs an empty line on either side
        text = before + begin + body + end + behind.partition(end)[2]
    return text


def _table(*columns: str) -> list[str]:
    """Return the rows of all families' tables with these columns, in the order of the families."""
    header = f"| {' | '.join(columns)} |"
    lines = [header, "|" + "---|" * len(columns)]
    for family in dict.fromkeys(_family(create(name)) for name in BENCHMARKS):
        _, there, behind = (FAMILIES / family / "README.md").read_text(encoding="utf-8").partition(header + "\n")
        if there:
            lines += behind.split("\n\n")[0].strip("\n").split("\n")[1:]
    return lines


def _family(benchmark: Benchmark) -> str:
    return type(benchmark).__module__.split(".")[-2]


def _numbers() -> Iterator[str]:
    """Yield a row for the benchmarks of a family that have one number from one source."""
    found: dict[tuple[str, int, str], list[str]] = {}
    for benchmark in map(create, BENCHMARKS):
        if (count := benchmark.published_count) is not None:
            found.setdefault((_family(benchmark), count.questions, count.source), []).append(benchmark.name)
    for (_, questions, source), names in found.items():
        yield f"| {_listed(names)} | {questions:,} | {source} |"


def _without_number() -> list[str]:
    found: dict[str, list[str]] = {}
    for benchmark in map(create, BENCHMARKS):
        if benchmark.published_count is None:
            found.setdefault(benchmark.published_count_note, []).append(benchmark.name)
    return [f"- {_listed(names)}: {note}" for note, names in found.items()]


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more of the family"


if __name__ == "__main__":
    run_tool(main)
