"""Measure parts of the project: `python tools/benchmark.py NAME [--json FILE] [arguments of the benchmark]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import perf
from megatron_v2pe.base.command import finished, run_tool
from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import ConfigError

EPILOG = """example:
  python tools/benchmark.py positions --tokens 100000 --images 300 --json positions.json

`NAME --help` explains the arguments of one benchmark, --list names them all."""


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python tools/benchmark.py",
        usage="%(prog)s NAME [--json FILE] [arguments of the benchmark]\n       %(prog)s --list",
        description="Measure a part of megatron-v2pe and print a table.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the benchmark")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results to FILE")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("-h", "--help", action="store_true", help="show this text, or that of NAME, and stop")
    arguments, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if arguments.list:
        _list()
    elif arguments.name is None:
        parser.print_help(sys.stdout if arguments.help else sys.stderr)
        return 0 if arguments.help else 2
    else:
        return finished(lambda: _run(arguments.name, [*rest, *(["--help"] if arguments.help else [])], arguments.json))
    return 0


def _list() -> None:
    width = max(map(len, perf.names()))
    for name in perf.names():
        print(f"{name:<{width}}  {perf.load(name).DESCRIPTION}")


def _run(name: str, argv: list[str], target: Path | None) -> None:
    if name not in perf.names():
        raise ConfigError(f"benchmark {name!r} is none of {', '.join(perf.names())}")
    if target is not None and not target.absolute().parent.is_dir():
        raise ConfigError(f"--json {target}: no folder {target.absolute().parent}")
    result: dict[str, Any] = perf.load(name).run(argv)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    print("\n".join(lines({"benchmark": name, **machine, **result})))
    if target is not None:
        report = {"benchmark": name, "machine": machine, "result": result}
        write_text(target, json.dumps(report, indent=2) + "\n", shared=True)


def lines(result: dict[str, Any]) -> list[str]:
    """Return a result as text: one line per value, tables for lists of dictionaries."""
    plain = {key: value for key, value in result.items() if not _is_table(value)}
    width = max((len(key) for key in plain), default=0)
    text = [f"{key:<{width}}  {_word(value)}" for key, value in plain.items()]
    for key, rows in result.items():
        if _is_table(rows):
            text += ["", f"{key}:", *table(rows)]
    return text


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return aligned lines: a heading and one line per row, numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_word(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_tool(main)
