"""Ask a checkpoint the questions of benchmarks, on any number of processes, and score its answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_v2pe.base.command import finished, run_tool

if TYPE_CHECKING:
    from megatron_v2pe.device.launch import World
    from megatron_v2pe.evaluate.benchmark import Benchmark, Question
    from megatron_v2pe.generate.load import Opened, Opening
    from megatron_v2pe.v2pe.settings import Stride

EXAMPLES = """examples, from the folder that holds `data/` and `dataset/` as the published README lays them out:
  python tools/evaluate.py --checkpoint work_dirs/run --benchmarks chartqa,docvqa --out work_dirs/evaluate/run
  python -m megatron_v2pe.device.torchrun --nproc-per-node 8 tools/evaluate.py --benchmarks general \\
      --checkpoint pretrained/InternVL2-2B --out OUT
  python -m megatron_v2pe.device.torchrun --nproc-per-node 8 tools/evaluate.py --benchmarks mmniah_long_1m \\
      --checkpoint work_dirs/run --out OUT --context-parallel-size 8 --rope_pos_id_stride 64
  python tools/evaluate.py --checkpoint work_dirs/run --benchmarks my_questions.jsonl --strides 16 64 256 --out OUT
  python tools/make_synthetic_benchmarks.py --help     tiny sets in every benchmark's format, to try it

A line of my_questions.jsonl: {"question": "What is this?", "image": "a.png", "answer": "A cat."}; paths are relative to
the file's folder (docs/evaluation.md, Your own questions).

Answers are kept in OUT/BENCHMARK/answers-*.jsonl, one by one; the same command goes on where it was stopped, also on
another number of processes. Processes beyond one copy of the model are further copies that share the questions.
A question that ended in an error (an image that was missing, too little memory) is asked again by the same command.
OUT/BENCHMARK/results.json has the scores; --list names all benchmarks and groups."""


def _parser() -> argparse.ArgumentParser:
    from megatron_v2pe.generate.load import add_checkpoint_arguments

    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
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


def check(argv: list[str], processes: int) -> None:
    """Refuse what can be refused before so many processes are started, see `device/launch_checks.py`."""
    from megatron_v2pe.device.launch import World

    arguments = _read(argv)
    if not arguments.list:
        _look(arguments, World(world_size=processes))


def _read(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
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


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    arguments = _read(argv)
    from megatron_v2pe.base.logging import quiet_expected_warnings

    quiet_expected_warnings()
    if arguments.list:
        return finished(lambda: _list(arguments.root))
    return finished(lambda: _run(arguments), "interrupted; what is answered is kept, and the same command goes on")


def _list(root: Path) -> None:
    """Print every benchmark with its published number of questions, and whether its data are below a folder."""
    from megatron_v2pe.evaluate.benchmark_names import create
    from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS

    for benchmark in map(create, BENCHMARKS):
        count = "-" if benchmark.published is None else f"{benchmark.published:,}"
        here = "  data here" if all((root / needed.path).exists() for needed in benchmark.needed) else ""
        print(f"{benchmark.name:<34}{count:>8}{here}")
    print("\ngroups: " + ", ".join(BENCHMARKS.groups()))


def _look(
    arguments: argparse.Namespace, world: World | None = None
) -> tuple[Opening, list[Stride], Sequence[Benchmark]]:
    """Return what is to be asked of which checkpoint, all that can be checked without a model checked."""
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.evaluate.benchmark import check_all
    from megatron_v2pe.evaluate.benchmark_names import create, expand
    from megatron_v2pe.generate.load import prepare
    from megatron_v2pe.v2pe.settings import parse_stride

    if arguments.strides and arguments.rope_pos_id_stride is not None:
        raise ConfigError("--strides takes the place of --rope_pos_id_stride; give one of them")
    strides = [parse_stride(text) for text in arguments.strides or ()]
    opening = prepare(arguments, world)
    for stride in [*strides, *strides[:1]]:  # each is looked at; it is opened at the first
        opening = opening.at_stride(stride)
    benchmarks = [create(name, arguments.mode) for name in expand(arguments.benchmarks, arguments.root)]
    check_all(benchmarks, arguments.root)  # what is missing is told before the model is loaded
    return opening, strides, benchmarks


def _run(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.base.run_lock import FolderLock
    from megatron_v2pe.device.rank_errors import run_on_first_rank
    from megatron_v2pe.generate.load import opened

    opening, strides, benchmarks = _look(arguments)
    questions = [(benchmark, list(benchmark.questions(arguments.root))) for benchmark in benchmarks]
    lock = FolderLock(arguments.out, "this evaluation")

    with ExitStack() as stack:
        stack.callback(lock.release)
        it = stack.enter_context(opened(opening, lambda: run_on_first_rank(lock.take)))
        folders = {stride: arguments.out / f"stride_{str(stride).replace('/', '-')}" for stride in strides}
        folders = folders or {it.pretrained.policy.stride: arguments.out}
        run_on_first_rank(lambda: _settle(arguments, it, folders))  # all of them before the first question
        for stride, out in folders.items():
            asked = replace(it, pretrained=it.pretrained.at_stride(stride)) if strides and stride is not None else it
            if strides and opening.world.rank == 0:
                print(f"stride {stride}")
            _ask(arguments, asked, questions, out)


def _settle(arguments: argparse.Namespace, it: Opened, folders: Mapping[Any, Path]) -> None:
    """Note in each stride's folder what its answers depend on, or refuse a folder of another run."""
    from megatron_v2pe.checkpoint.folder import HF_FOLDER
    from megatron_v2pe.data.image_operations import AS_PUBLISHED
    from megatron_v2pe.data.image_operations import Opening as PictureOpening
    from megatron_v2pe.evaluate.provenance import checkpoint_digest, settle
    from megatron_v2pe.generate.prompt import asked_with
    from megatron_v2pe.models.config import InternVLConfig

    # Older versions asked a run as the checkpoint it started from, and noted nothing of it.
    assumed = {**asked_with(InternVLConfig.from_folder(it.folder / HF_FOLDER)), "normalize_type": "imagenet"}
    settings: dict[str, Any] = {
        "checkpoint": checkpoint_digest(it.folder),
        "rope_pos_id_version": it.pretrained.policy.version,
        "max_num": arguments.max_num or "each benchmark's own",
        "mode": arguments.mode,
        "dtype": it.dtype,
        "window": arguments.window or "any",
        **asked_with(it.pretrained.config),
    }
    if (pictures := PictureOpening.of(it.tiling.operations)) != AS_PUBLISHED:
        settings["pictures"] = str(pictures)
    for stride, out in folders.items():
        settle(out, {**settings, "rope_pos_id_stride": str(stride)}, it.device, assumed)


def _ask(
    arguments: argparse.Namespace, it: Opened, questions: Sequence[tuple[Benchmark, list[Question]]], out: Path
) -> None:
    """Ask all questions at one stride."""
    from megatron_v2pe.evaluate.batching import default_workers
    from megatron_v2pe.evaluate.results import as_line, score
    from megatron_v2pe.evaluate.runner import Runner
    from megatron_v2pe.foreign.printable import printable

    workers = arguments.image_workers
    if workers is None:
        workers = default_workers(it.pretrained.device.torch_device)
    limits = {"max_num": arguments.max_num, "window": arguments.window, "image_workers": workers}
    runner = Runner(it.pretrained, it.tiling, arguments.batch_size, arguments.retry, **limits)
    for benchmark, everything in questions:
        mine, folder = everything[: arguments.limit], out / benchmark.name
        runner.run(benchmark, mine, folder)
        if it.world.rank == 0:
            limit = len(mine) if len(mine) < len(everything) else None
            print(printable(as_line(score(benchmark, mine, folder, arguments.root, arguments.mode, limit))))


if __name__ == "__main__":
    run_tool(main)
