"""The command line of an evaluation: its flags, read once for `tools/evaluate.py` and for the scripts that start it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_v2pe.generate.load import add_checkpoint_arguments

DESCRIPTION = "Ask a checkpoint the questions of benchmarks, on any number of processes, and score its answers."
EXAMPLES = """examples, from the folder that holds `data/` and `dataset/` as the published README lays them out:
  python tools/evaluate.py --checkpoint work_dirs/run --benchmarks chartqa,docvqa --out work_dirs/evaluate/run
  python -m megatron_v2pe.device.torchrun --nproc-per-node 8 tools/evaluate.py --benchmarks general \\
      --checkpoint pretrained/InternVL2-2B --out OUT
  python -m megatron_v2pe.device.torchrun --nproc-per-node 8 tools/evaluate.py --benchmarks mmniah_long_1m \\
      --checkpoint work_dirs/run --out OUT --context-parallel-size 8 --rope_pos_id_stride 64
  python tools/evaluate.py --checkpoint work_dirs/run --benchmarks my_questions.jsonl --strides 16 64 256 --out OUT
  python tools/evaluate.py --checkpoint BASE --adapter first=RUN --adapter second=FOLDER --benchmarks chartqa --out OUT
  python tools/make_synthetic_benchmarks.py --help     tiny sets in every benchmark's format, to try it

A line of my_questions.jsonl: {"question": "What is this?", "image": "a.png", "answer": "A cat."}; paths are relative to
the file's folder (docs/evaluation.md, Your own questions).

Answers are kept in OUT/BENCHMARK/answers-*.jsonl, one by one; the same command goes on where it was stopped, also on
another number of processes. Processes beyond one copy of the model are further copies that share the questions.
Of several adapters each has its answers and scores in OUT/adapter_NAME.
A question that ended in an error (an image that was missing, too little memory) is asked again by the same command.
OUT/BENCHMARK/results.json has the scores; --list names all benchmarks and groups."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags; every spelling of a flag that is understood is one of its option strings."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FOLDER", help="HF folder, Megatron checkpoint, or run")
    add("--benchmarks", nargs="+", default=[], metavar="NAME", help="benchmarks or groups of them")
    add("--out", type=Path, metavar="FOLDER", help="where answers and scores are kept")
    add("--root", type=Path, default=Path(), metavar="FOLDER", help="what data paths are relative to (default: here)")
    add("--list", action="store_true", help="name all benchmarks and groups, and which have data here")
    add("--limit", type=int, metavar="N", help="only the first N questions of each; the result says so")
    add("--batch-size", type=int, default=1, help="most questions answered together (default: %(default)s)")
    add(
        "--image-workers",
        type=int,
        metavar="N",
        help="threads that prepare the next questions while one is answered (default: up to 8 on CUDA, 0 on the CPU)",
    )
    add("--mode", choices=("corrected", "reference"), default="corrected", help="of prompts and scores")
    add(
        "--retry",
        choices=("errors", "all", "none"),
        default="errors",
        help="questions to be asked again: those that ended in an error, also those that ended the run twice, or none "
        "(default: %(default)s)",
    )
    add(
        "--strides",
        nargs="+",
        metavar="STRIDE",
        help="several strides, one after the other, in place of --rope_pos_id_stride; answers go to OUT/stride_STRIDE",
    )
    add_checkpoint_arguments(parser, window="any, as published", max_num="each benchmark's own, or the checkpoint's")
    return parser


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line and check what needs no other file; a line that cannot be right ends the process (2)."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        return arguments
    if arguments.checkpoint is None or arguments.out is None or not arguments.benchmarks:
        parser.error("--checkpoint, --benchmarks and --out are needed")
    for name in ("--limit", "--batch-size", "--max-num", "--window"):
        value = getattr(arguments, name[2:].replace("-", "_"))
        if value is not None and value < 1:
            parser.error(f"{name} is {value}, expected 1 or more")
    if arguments.image_workers is not None and arguments.image_workers < 0:
        parser.error(f"--image-workers is {arguments.image_workers}, expected 0 or more")
    return arguments
