"""Write small made-up sets in the formats of the benchmarks, to try evaluation without a download."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_v2pe.base.command import finished, run_tool

EXAMPLES = """examples:
  python tools/make_synthetic_benchmarks.py work_dirs/synthetic_benchmarks
  python tools/make_synthetic_benchmarks.py work_dirs/synthetic_benchmarks chartqa mmniah_val milebench

The folder then holds data/ and dataset/ as the published benchmarks lie in them; evaluate with it as the root."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", type=Path, metavar="FOLDER", help="where to write; files of the same name are replaced")
    parser.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="benchmarks or groups; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of all draws; default: 0")
    parser.add_argument("--questions", type=int, default=4, metavar="N", help="of a file, 3 to 5; default: 4")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _parser().parse_args(argv)
    return finished(lambda: _write(arguments))  # imports torch, seconds; --help need not wait


def _write(arguments: argparse.Namespace) -> int:
    from megatron_v2pe.evaluate.benchmark_names import expand
    from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

    names = expand(arguments.names)
    for name in names:
        write_benchmark(arguments.root, name, arguments.seed, arguments.questions)
    print(f"{arguments.root}: {len(names)} benchmarks")
    return 0


if __name__ == "__main__":
    run_tool(main)
