"""Put training runs side by side: settings that differ, curves over one axis, final numbers, time to a loss."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples:
  python tools/compare_runs.py work_dirs/a/run work_dirs/b/run --out work_dirs/compare
  python tools/compare_runs.py full=work_dirs/a/run lora=work_dirs/b/run --by tokens --loss 0.5

Prints a table; with --out it also writes compare.html, which needs nothing beside it, and compare.png. See
docs/run_page.md."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="[NAME=]RUN", help="folders of runs (checkpoint.save), or of their logs")
    add("--out", type=Path, metavar="FOLDER", help="where to write the page and the picture")
    add("--by", choices=("step", "tokens", "seconds"), default="step", help="axis of the curves (default: step)")
    add("--loss", type=float, help="loss whose first time is told (default: the largest of the last losses)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    return finished(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.foreign.printable import printable
    from megatron_v2pe.train.page.compare import RunComparison, names_of
    from megatron_v2pe.train.page.run_files import open_run

    opened = []
    for text in arguments.runs:
        name, equals, folder = text.partition("=")
        is_named = bool(equals) and "/" not in name
        opened.append((name if is_named else None, open_run(Path(folder if is_named else text))))
    comparison = RunComparison(names_of(opened), arguments.by, arguments.loss)
    print(printable(comparison.text(), lines=True), end="")
    for path in comparison.write(arguments.out) if arguments.out else ():
        print(printable(path))


if __name__ == "__main__":
    run_tool(main)
