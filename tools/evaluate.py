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
    from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
    from megatron_v2pe.device.launch import World
    from megatron_v2pe.evaluate.benchmark import Benchmark, Question
    from megatron_v2pe.generate.load import LoadedModel, LoadRequest
    from megatron_v2pe.v2pe.settings import Stride


def check(argv: list[str], processes: int) -> None:
    """Refuse what can be refused before so many processes are started, see `device/launch_checks.py`."""
    from megatron_v2pe.device.launch import World
    from megatron_v2pe.evaluate.cli import read

    arguments = read(argv)
    if not arguments.list:
        _look(arguments, World(world_size=processes))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (`exit_status`)."""
    from megatron_v2pe.base.logging import quiet_expected_warnings
    from megatron_v2pe.evaluate.cli import read

    arguments = read(argv)
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
) -> tuple[LoadRequest, list[Stride], Sequence[Benchmark]]:
    """Return what is to be asked of which checkpoint, all that can be checked without a model checked."""
    from megatron_v2pe.errors import ConfigError
    from megatron_v2pe.evaluate.benchmark import check_all
    from megatron_v2pe.evaluate.benchmark_names import create, expand
    from megatron_v2pe.evaluate.scorer_names import scorer_of
    from megatron_v2pe.generate.load import load_request
    from megatron_v2pe.v2pe.settings import parse_stride

    if arguments.strides and arguments.rope_pos_id_stride is not None:
        raise ConfigError("--strides takes the place of --rope_pos_id_stride; give one of them")
    strides = [parse_stride(text) for text in arguments.strides or ()]
    request = load_request(arguments, world)
    for stride in [*strides, *strides[:1]]:  # each is looked at; it is opened at the first
        request = request.at_stride(stride)
    benchmarks = [create(name, arguments.mode) for name in expand(arguments.benchmarks, arguments.root)]
    for benchmark in benchmarks:
        if benchmark.scorer is not None:
            scorer_of(benchmark.scorer)  # a scorer that is missing is said before anything is asked
    check_all(benchmarks, arguments.root)  # what is missing is said before the model is loaded
    return request, strides, benchmarks


def _run(arguments: argparse.Namespace) -> None:
    from megatron_v2pe.base.run_lock import FolderLock
    from megatron_v2pe.device.rank_errors import run_on_first_rank
    from megatron_v2pe.generate.load import load_model

    request, strides, benchmarks = _look(arguments)
    questions = [(benchmark, list(benchmark.questions(arguments.root))) for benchmark in benchmarks]
    lock = FolderLock(arguments.out, "this evaluation")
    adapters: list[str | None] = [*request.adapters] or [None]

    with ExitStack() as stack:
        stack.callback(lock.release)
        loaded = stack.enter_context(load_model(request, lambda: run_on_first_rank(lock.take)))
        rounds = [
            (
                adapter,
                stride,
                _folder(arguments.out, adapter if len(adapters) > 1 else None, stride if strides else None),
            )
            for adapter in adapters
            for stride in strides or [loaded.pretrained.policy.stride]
        ]
        run_on_first_rank(lambda: _settle(arguments, loaded, rounds, request.adapters))  # all before the first question
        for adapter, stride, out in rounds:
            if adapter is not None:
                loaded.pretrained.choose(adapter)
            asked = (
                replace(loaded, pretrained=loaded.pretrained.at_stride(stride))
                if strides and stride is not None
                else loaded
            )
            if request.world.rank == 0:
                _announce(adapter if len(adapters) > 1 else None, stride if strides else None)
            _ask(arguments, asked, questions, out)


def _folder(out: Path, adapter: str | None, stride: Stride | None) -> Path:
    """Return the folder of the answers of one of several adapters, at one of several strides."""
    folder = out if adapter is None else out / f"adapter_{adapter.replace('/', '-')}"
    return folder if stride is None else folder / f"stride_{str(stride).replace('/', '-')}"


def _announce(adapter: str | None, stride: Stride | None) -> None:
    """Say which of several adapters answers, and at which of several strides."""
    from megatron_v2pe.foreign.printable import printable

    named = [f"adapter {printable(adapter)}"] if adapter is not None else []
    named += [f"stride {stride}"] if stride is not None else []
    if named:
        print(", ".join(named))


def _settle(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    rounds: Sequence[tuple[str | None, Any, Path]],
    adapters: Mapping[str, Adapter],
) -> None:
    """Note in each folder of answers what they depend on, or refuse a folder of another run."""
    from megatron_v2pe.checkpoint.folder import HF_FOLDER
    from megatron_v2pe.data.image_operations import AS_PUBLISHED
    from megatron_v2pe.data.image_operations import Opening as PictureOpening
    from megatron_v2pe.evaluate.provenance import checkpoint_digest, settle
    from megatron_v2pe.generate.prompt import asked_with
    from megatron_v2pe.models.config import InternVLConfig

    # Older versions asked a run as the checkpoint it started from, and noted nothing of it.
    assumed = {**asked_with(InternVLConfig.from_folder(loaded.folder / HF_FOLDER)), "normalize_type": "imagenet"}
    settings: dict[str, Any] = {
        "checkpoint": checkpoint_digest(loaded.folder),
        "rope_pos_id_version": loaded.pretrained.policy.version,
        "max_num": arguments.max_num or "each benchmark's own",
        "mode": arguments.mode,
        "dtype": loaded.dtype,
        "window": arguments.window or "any",
        **asked_with(loaded.pretrained.config),
    }
    if (pictures := PictureOpening.of(loaded.tiling.operations)) != AS_PUBLISHED:
        settings["pictures"] = str(pictures)
    for adapter, stride, out in rounds:
        own = {} if adapter is None else {"adapter": adapters[adapter].digest()}
        settle(out, {**settings, "rope_pos_id_stride": str(stride), **own}, loaded.device, assumed)


def _ask(
    arguments: argparse.Namespace, loaded: LoadedModel, questions: Sequence[tuple[Benchmark, list[Question]]], out: Path
) -> None:
    """Ask all questions at one stride."""
    from megatron_v2pe.evaluate.batching import default_workers
    from megatron_v2pe.evaluate.results import as_line, score
    from megatron_v2pe.evaluate.runner import Runner
    from megatron_v2pe.foreign.printable import printable

    workers = arguments.image_workers
    if workers is None:
        workers = default_workers(loaded.pretrained.device.torch_device)
    limits = {"max_num": arguments.max_num, "window": arguments.window, "image_workers": workers}
    runner = Runner(loaded.pretrained, loaded.tiling, arguments.batch_size, arguments.retry, **limits)
    for benchmark, everything in questions:
        mine, folder = everything[: arguments.limit], out / benchmark.name
        runner.run(benchmark, mine, folder)
        if loaded.world.rank == 0:
            limit = len(mine) if len(mine) < len(everything) else None
            print(printable(as_line(score(benchmark, mine, folder, arguments.root, arguments.mode, limit))))


if __name__ == "__main__":
    run_tool(main)
