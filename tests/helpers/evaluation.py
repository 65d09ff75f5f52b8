"""Evaluation of a small checkpoint inside of a `WorkerPool`, in any layout, with faults planted on single ranks.

And the same question at several strides of one opened model (`at_strides`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from megatron_v2pe.device import launch
from megatron_v2pe.evaluate import runner as runner_module
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.runner import Retry, Runner
from megatron_v2pe.generate import generation, memory, pretrained, tiles
from megatron_v2pe.generate import session as session_module
from megatron_v2pe.generate.generation import GenerationOptions
from megatron_v2pe.generate.pretrained import ChatQuestion, Pretrained, open_pretrained
from megatron_v2pe.generate.prompt import checkpoint_tiling
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import Stride


@dataclass(frozen=True)
class Case:
    """What to evaluate."""

    checkpoint: Path
    """A Megatron checkpoint."""
    root: Path
    """Folder of the benchmark's data."""
    out: Path
    benchmark: str
    layout: ParallelConfig = field(default_factory=ParallelConfig)
    batch_size: int = 1
    retry: Retry = "errors"
    image_workers: int = 0
    fault: str | None = None
    """One of `FAULTS`."""


@dataclass
class Seen:
    """What a rank saw."""

    answers: dict[str, Answer]
    opened: list[str]
    """Names of the images it decoded, in order."""
    batches: list[int]
    """Questions of every batch that was tried."""


def run(case: Case) -> Seen:
    """Evaluate on this rank, together with all others of the pool."""
    opened: list[str] = []
    read_tiles = tiles.read_tiles

    def watched(pictures: Any, *settings: Any, **more: Any) -> torch.Tensor:
        opened.extend(Path(picture.path).name for picture in pictures)
        return read_tiles(pictures, *settings, **more)

    batches: list[int] = []

    def noted(engine: Any, prompts: Sequence[Any], *settings: Any) -> Any:
        batches.append(len(prompts))
        return generation.generate(engine, prompts, *settings)

    with _opened(case.checkpoint, case.layout) as model:
        more: dict[str, Any] = {"window": model.window, "image_workers": case.image_workers}
        runner = Runner(model, checkpoint_tiling(model.config, 2), case.batch_size, case.retry, **more)
        benchmark = create(case.benchmark)
        questions = list(benchmark.questions(case.root))
        with (
            mock.patch.object(tiles, "read_tiles", watched),
            mock.patch.object(runner_module, "generate", noted),
            FAULTS[case.fault](),
        ):
            runner.run(benchmark, questions, case.out)
        dist.barrier()
    return Seen(AnswerLog(case.out).answers, opened, batches)


@contextmanager
def _opened(checkpoint: Path, layout: ParallelConfig, stride: Stride | None = None) -> Iterator[Pretrained]:
    world = launch.World(rank=dist.get_rank(), world_size=dist.get_world_size())
    stays = mock.patch.object(launch, "shutdown")  # the pool's process group outlives the model
    settings: dict[str, Any] = {"layout": layout, "world": world, "window": 100000, "dtype": torch.float64}
    with stays, open_pretrained(checkpoint, stride, "cpu", **settings) as model:
        yield model


@dataclass
class AtStride:
    """What a rank gave at one stride."""

    ids: list[list[int]]
    logits: list[torch.Tensor]
    """Logits of each question [steps, vocab_size]; on the last pipeline stage."""


def at_strides(
    checkpoint: Path,
    questions: Sequence[ChatQuestion],
    strides: Sequence[Stride],
    layout: ParallelConfig,
    reopen: bool = False,
    forget_rotary: bool = False,
) -> list[AtStride]:
    """Ask the same questions at one stride after the other.

    Args:
        checkpoint: a Megatron checkpoint trained with V2PE.
        questions: asked together.
        strides: in order.
        layout: of this pool's ranks.
        reopen: open the checkpoint anew for each stride, in place of `Pretrained.at_stride`.
        forget_rotary: planted break: the rotary module of the first stride stays.
    """
    if reopen:
        return [at_strides(checkpoint, questions, [stride], layout)[0] for stride in strides]
    found: list[AtStride] = []
    with _opened(checkpoint, layout, strides[0]) as model:
        first = model.engine.model.rotary
        kept = mock.patch.object(pretrained, "build_rotary", lambda *_: first) if forget_rotary else nullcontext()
        with kept:
            for stride in strides:
                model = model.at_stride(stride)
                options = GenerationOptions(max_new_tokens=3, keep_logits=True)
                answers = model.ask(questions, checkpoint_tiling(model.config, 2), options)
                logits = [torch.stack(answer.logits).clone() for answer in answers if answer.logits]
                found.append(AtStride([answer.token_ids for answer in answers], logits))
    return found


@contextmanager
def _on_last_rank(target: Any, name: str, broken: Callable[[], Any]) -> Iterator[None]:
    """Let the second call of a function go wrong on the last rank only."""
    original, calls = getattr(target, name), 0

    def called(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        return broken() if calls == 2 else original(*arguments, **settings)

    with mock.patch.object(target, name, called) if dist.get_rank() == dist.get_world_size() - 1 else nullcontext():
        yield


def _no_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes")


def _only_alone(engine: Any, prompts: Sequence[Any], reserve: int) -> Any:
    if len(prompts) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return session_module.Session(engine, prompts, reserve)


FAULTS: dict[str | None, Callable[[], AbstractContextManager[Any]]] = {
    None: nullcontext,
    "little free": lambda: _on_last_rank(memory, "free_bytes", lambda: 1000),
    "no room for the cache": lambda: _on_last_rank(session_module, "KVCache", _no_memory),
    "no memory while attending": lambda: _on_last_rank(generation.Session, "prefill", _no_memory),
    "memory for one": lambda: mock.patch.object(generation, "Session", _only_alone),
}
"""What goes wrong with the second question, on the last rank; the last: with every batch of several."""
