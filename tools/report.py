"""Make a report of evaluation runs: the two published tables, heat maps, series over length and stride, an audit."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples:
  python tools/report.py --out work_dirs/report                      the published tables and their audit alone
  python tools/report.py work_dirs/evaluate/run --out work_dirs/report
  python tools/report.py stride64=work_dirs/evaluate/a stride16=work_dirs/evaluate/b --out work_dirs/report \\
      --mode corrected --against InternVL2-2B
  python tools/report.py work_dirs/evaluate/run --out work_dirs/report --server-score run:mmbench_test_en=73.1

A run is a folder that `tools/evaluate.py --out` wrote. Scores are computed from its raw answers, with the benchmarks'
data below --root; where these are absent, its results.json are taken and marked. Nothing of a run is changed. See
docs/report.md."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="[NAME=]FOLDER", help="runs, a row each; named after their folders")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where to write; files of the same name are replaced")
    add("--root", type=Path, default=Path(), metavar="FOLDER", help="what data paths are relative to (default: here)")
    add(
        "--mode",
        choices=("reference", "corrected"),
        default="reference",
        help="of scores; published ones are comparable with reference (default: %(default)s)",
    )
    add("--against", default="InternVL2-V2PE-32K", metavar="MODEL", help="published row compared with; %(default)s")
    add(
        "--server-score",
        nargs="+",
        default=[],
        metavar="RUN:BENCHMARK=PERCENT",
        help="what a server gave for a test split",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    return finished(lambda: _report(arguments))  # imports benchmarks and matplotlib, a second; --help need not wait


def _report(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.base.logging import setup_logging
    from megatron_v2pe.evaluate.report.build import Report, check_against
    from megatron_v2pe.evaluate.report.runs import open_runs, read_server_scores
    from megatron_v2pe.evaluate.report.scoring import score_runs
    from megatron_v2pe.foreign.printable import printable

    setup_logging(level=logging.ERROR)  # sets of another size than published are named in the report
    check_against(arguments.against)
    runs = open_runs(arguments.runs)
    server = read_server_scores(arguments.server_score, runs)
    scores = score_runs(runs, arguments.root, server)
    for path in Report(runs, scores, arguments.mode, arguments.against).write(arguments.out):
        print(printable(path))


if __name__ == "__main__":
    run_tool(main)
