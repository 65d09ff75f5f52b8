"""Short runs that evaluate while they train, inside of a `WorkerPool`, in any layout, with faults planted."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.evaluate import runner as runner_module
from megatron_v2pe.evaluate.answers import AnswerLog
from megatron_v2pe.evaluate.judging import JudgedAnswers
from megatron_v2pe.generate import generation
from megatron_v2pe.models.weights_digest import weights_digest
from megatron_v2pe.parallel import topology
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import main, setup
from megatron_v2pe.train.cli import read_command
from megatron_v2pe.train.evaluation import work
from megatron_v2pe.train.metrics_file import METRICS, read_metrics
from megatron_v2pe.train.new_places import NewPlaces


class KilledError(BaseException):
    """Stands for the end of a process in the middle of its work: nothing that catches errors catches it."""


@dataclass
class Seen:
    """What a rank saw of a run."""

    rows: list[dict[str, Any]]
    weights: str
    """Fingerprint of this rank's weights at the end."""
    random: int
    """A draw of PyTorch's generator at the end."""
    groups: int
    """Process groups that were open before the run and are not any more, or the reverse."""
    warnings: list[str] = field(default_factory=list)


def train(words: Sequence[str], fault: str | None = None) -> Seen:
    """Train as a command line asks for, on this rank together with all others of the pool."""
    world = launch.World(rank=dist.get_rank(), world_size=dist.get_world_size())
    config = read_command(words, RECIPES, world.world_size).config.with_recorded_strides()
    before = len(topology._all_groups())
    digests: list[str] = []
    warnings: list[str] = []
    report = main._report

    def noted(run: Any, rates: str, start: int, done: int) -> None:
        digests.append(weights_digest(models[-1]))
        report(run, rates, start, done)

    load = main._load

    def loaded(run: Any) -> Any:
        found = load(run)
        models.append(found.model)
        return found

    torch.manual_seed(1)
    with (
        mock.patch.object(main, "_report", noted),
        mock.patch.object(main, "_load", loaded),
        mock.patch(
            "megatron_v2pe.train.evaluation.work._log.warning", lambda text, *rest: warnings.append(text % rest)
        ),
        FAULTS[fault](),
    ):
        try:
            main._train(setup.prepare(config, world, Device("cpu")), NewPlaces((), ()))
        except KilledError:
            pass
        finally:
            topology.destroy()
            models.clear()
    random = int(torch.randint(1 << 40, ()))
    dist.barrier()
    path = Path(str(config.checkpoint.save)) / "logs" / METRICS
    rows = read_metrics(path) if path.exists() else []
    return Seen(rows, digests[-1] if digests else "", random, len(topology._all_groups()) - before, warnings)


def answers(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return the answers of a folder of one benchmark by question, with all that does not depend on time."""
    found = AnswerLog(folder).answers
    return {name: (one.answer, one.prompt, one.num_tokens, one.new_tokens, one.error) for name, one in found.items()}


def results(folder: Path) -> dict[str, Any]:
    """Return the content of a `results.json`."""
    return json.loads((folder / "results.json").read_text())


@contextmanager
def _at_answer(number: int, event: Callable[[], None]) -> Iterator[None]:
    """Let something happen on all ranks before a batch of this number is asked."""
    count = 0
    original = runner_module.Runner._answers

    def asked(self: Any, benchmark: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            event()
        return original(self, benchmark, batch)

    with mock.patch.object(runner_module.Runner, "_answers", asked):
        yield


def _kill() -> None:
    raise KilledError


@contextmanager
def _fails_on_last_rank(number: int, error: Callable[[], Exception]) -> Iterator[None]:
    """Let the last rank fail in the middle of an answer, while the others wait for it in an exchange."""
    count = 0
    original = generation.Session.decode

    def decode(self: Any, tokens: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and dist.get_rank() == dist.get_world_size() - 1:
            raise error()
        return original(self, tokens)

    with mock.patch.object(generation.Session, "decode", decode):
        yield


def _broken_scorer() -> AbstractContextManager[Any]:
    def judgements(self: JudgedAnswers, mode: Any) -> Any:
        raise ZeroDivisionError("a planted defect of a scorer")

    return mock.patch.object(JudgedAnswers, "judgements", judgements)


def _touched() -> AbstractContextManager[Any]:
    """Planted break: an evaluation changes a weight by a trifle, and draws a number."""
    give_back = work._give_memory_back

    def touched(reset_peak: bool) -> None:
        give_back(reset_peak)
        if reset_peak:
            models[-1].language_model.decoder.layers[0].mlp.linear_fc2.weight.data[0, 0] *= 1 + 1e-6
            torch.rand(())

    return mock.patch.object(work, "_give_memory_back", touched)


models: list[Any] = []
"""The models of the runs of this process."""
FAULTS: dict[str | None, Callable[[], AbstractContextManager[Any]]] = {
    None: nullcontext,
    "killed": lambda: _at_answer(2, _kill),
    "stopped": lambda: _at_answer(2, lambda: signal.raise_signal(signal.SIGTERM)),
    "scorer": _broken_scorer,
    "touched": _touched,
    "memory": lambda: _fails_on_last_rank(2, lambda: torch.OutOfMemoryError("CUDA out of memory. (planted)")),
}
"""What goes wrong."""
