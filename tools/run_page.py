"""Make the page of a training run: one HTML file and one PNG with its curves, data, answers, settings and health."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples:
  python tools/run_page.py work_dirs/quickstart/run                  writes run.html and run.png into its logs
  python tools/run_page.py work_dirs/quickstart/run --out /tmp/page

A run writes its page itself at its end (logging.page) and, where asked, every logging.page-interval steps. This tool
makes it anew from the run's files, also while the run goes on and for runs of earlier versions.
See docs/run_page.md."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run (checkpoint.save), or of its logs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: the folder of its logs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    return finished(lambda: _make(arguments))


def _make(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.foreign.printable import printable
    from megatron_v2pe.train.page.build import write_page

    for path in write_page(arguments.run, arguments.out):
        print(printable(path))


if __name__ == "__main__":
    run_tool(main)
