"""Runs of the trainer's own loop over stated packs, with what watches a run; for use inside a `WorkerPool`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from helpers import host_reads, parity
from megatron_v2pe.checkpoint import store
from megatron_v2pe.checkpoint.folder import newest
from megatron_v2pe.data.types import SampleId
from megatron_v2pe.device.device import Device
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, PixelSettings
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.train.after_step import AfterSteps
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.train.data_feed import StepBatches, Totals
from megatron_v2pe.train.ddp import wrap
from megatron_v2pe.train.health.attention_logits import AttentionLogits
from megatron_v2pe.train.health.checks import checks_between_steps
from megatron_v2pe.train.health.monitor import HealthMonitor
from megatron_v2pe.train.health.part_norms import PartsOfGradients
from megatron_v2pe.train.health.rank_seconds import RankSeconds
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.loop import Trainer
from megatron_v2pe.train.metrics import StepMetrics
from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full

SETTINGS = AdamWConfig(lr=1e-2, warmup_ratio=0.0, weight_decay=0.1, lr_decay_style="constant", adam_eps=1e-2)
"""An epsilon so large that rounding in tiny gradients does not become a whole step, which Adam as usual makes of it."""


@dataclass
class Watched:
    """What a run was like."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """Row of each step."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """Whole tensors after the last step."""
    state: list[torch.Tensor] = field(default_factory=list)
    """State of this rank's optimizer, moments and step counts, in its own order."""
    error: str | None = None
    """The error that ended the run."""


class _StepsFeed:
    """Packs of each step by number; data-parallel rank r takes r, r + dp, ... of them."""

    def __init__(self, steps: Sequence[Sequence[int]], case: parity.Case, model: Any) -> None:
        self.loader = object()
        self._steps, self._case, self._model, self._next = steps, case, model, 0

    def step(self, count: int) -> StepBatches:
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        numbers, self._next = self._steps[self._next], self._next + 1
        batches = {number: self._batch(number) for number in numbers}
        mine = [batches[number] for number in numbers[rank::size]]
        assert len(mine) == count
        return StepBatches(mine, Totals.of(list(batches.values())))

    def _batch(self, number: int) -> Any:
        batch = host_reads._batch(self._case.packs[number], self._model.internvl, self._model.coordinates)
        sources = tuple(SampleId(f"set{number}", line, f"pack{number}.jsonl") for line in range(len(batch.seqlens)))
        images = tuple((f"{number}-{line}.png",) for line in range(len(batch.seqlens)))
        return replace(batch, sources=sources, images=images)

    def sets_of(self, batch: Any) -> None:
        """No sums of data sets are asked for."""

    def commit(self, consumed: Any) -> None:
        """Nothing is read again."""


class _Rows:
    """Takes the rows of a run."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def write(self, metrics: StepMetrics, values: Any = None) -> None:
        self._rows.append({**metrics.row(), **(values or {})})

    def add(self, iteration: int, values: Any) -> None:
        raise AssertionError("nothing was missed")


@dataclass
class Plan:
    """What a run does."""

    steps: Sequence[Sequence[int]]
    """Packs of each step."""
    broken: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Step, from 1 -> tiles that are NaN on these data-parallel ranks."""
    health: HealthConfig = HealthConfig(interval=1, divergence_interval=None)
    settings: AdamWConfig = SETTINGS
    folder: str | None = None
    """Of logs."""
    save_to: str | None = None
    """Where the state after the last step is saved."""
    resume_from: str | None = None
    marks_apart: tuple[float, ...] = ()
    """Seconds that lie between two looks at the clock of `RankSeconds`, by rank; empty: its own clock."""
    before_step: Callable[[int, Any], None] | None = None
    """Called with the number of a step and this rank's stage before the step begins."""


def train(case: parity.Case, plan: Plan) -> Watched:
    """Train by a plan, on this rank."""
    result = Watched()
    layout, settings = case.layout, plan.settings
    options = ModelOptions(params_dtype=case.dtype, **case.options)
    with built(case.hf_config, layout, options, case.policy, case.image_token_id) as model:
        load_full(model, case.weights)
        groups, device = ProcessGroupCollection.use_mpu_process_groups(), torch.device("cpu")
        wrapped = wrap(model, layout, groups, device)
        optimizer = build_optimizer(
            wrapped, settings, case.dtype, layout.use_distributed_optimizer, layout.overlap_param_gather, groups
        )
        start, state = 0, None
        if plan.resume_from is not None:
            folder = newest(Path(plan.resume_from))
            assert folder is not None
            state = store.load_training(folder, model, optimizer)
            start = state.iteration
        scheduler = build_scheduler(optimizer, settings, 50)
        scheduler.step(increment=start)
        logs = None if plan.folder is None else Path(plan.folder)
        health = HealthMonitor(plan.health, settings.clip_grad, logs, start)
        checks = checks_between_steps(plan.health, wrapped, optimizer, lambda: {"packs": 3}, "the start")
        after = AfterSteps([health, *checks])
        if state is not None:
            after.load_state_dict(state.after_steps, "state")
        size = parallel_state.get_data_parallel_world_size()
        trainer = Trainer(
            model=wrapped,
            optimizer=optimizer,
            scheduler=scheduler,
            feed=_StepsFeed(plan.steps[start:], case, model),  # type: ignore[arg-type]
            device=Device("cpu"),
            cutter=PackCutter(
                model.coordinates, case.image_token_id, model.internvl.tokens_per_tile, model.pre_process
            ),
            pixels=PixelSettings(device, case.dtype, ((0.5,) * 3, (0.5,) * 3)),
            num_micro_batches=len(plan.steps[start]) // size,
            seed=0,
            cost=StepCost.of(model.internvl),
            metrics=_Rows(result.rows),  # type: ignore[arg-type]
            save=lambda step: _save(plan, model, optimizer, after, step),
            save_interval=None,
            after=after,
            health=health,
            parts=PartsOfGradients(model, optimizer),
            logits=AttentionLogits(model, model.internvl.llm.num_layers, plan.health.attention_interval),
        )
        with mock.patch.object(trainer, "step", _broken(trainer, plan, model)), _clock(plan):
            try:
                trainer.run(start, len(plan.steps), None, host_reads._Silent([]))  # type: ignore[arg-type]
            except ValueError as error:
                result.error = str(error)
        result.weights = gather_full(model, lambda parameter: parameter.detach())
        result.state = [tensor.clone() for tensor in _state(optimizer)]
    return result


def _clock(plan: Plan) -> AbstractContextManager[Any]:
    """Have the time of each rank stated, where the plan states it."""
    if not plan.marks_apart:
        return nullcontext()
    looks, apart = itertools.count(), plan.marks_apart[dist.get_rank()]
    return mock.patch.object(RankSeconds, "_now", lambda _: next(looks) * apart)


def _broken(trainer: Trainer, plan: Plan, model: Any) -> Any:
    """Return the trainer's step, with tiles that are NaN where the plan has it so."""
    original, ready = trainer.step, PixelSettings.ready

    def spoilt(pixels: PixelSettings, batch: MicroBatch) -> MicroBatch:
        batch = ready(pixels, batch)
        if batch.pixel_values is None:
            return batch
        return replace(batch, pixel_values=batch.pixel_values * torch.nan)

    def step(iteration: int, *others: Any) -> Any:
        if plan.before_step is not None:
            plan.before_step(iteration + 1, model)
        if parallel_state.get_data_parallel_rank() in plan.broken.get(iteration + 1, ()):
            with mock.patch.object(PixelSettings, "ready", spoilt):
                return original(iteration, *others)
        return original(iteration, *others)

    return step


def _save(plan: Plan, model: Any, optimizer: Any, after: AfterSteps, step: int) -> None:
    if plan.save_to is None:
        return
    state = store.TrainingState(step, {"consumed": 1}, {}, after.state_dict())
    store.save(Path(plan.save_to), model, optimizer, state, hf_source=Path(plan.save_to), keep_latest=2)


def _state(optimizer: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for member in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = member.optimizer
        for group in inner.param_groups:
            for parameter in group["params"]:
                found.append(parameter.detach())
                found += [torch.as_tensor(value) for _, value in sorted(inner.state.get(parameter, {}).items())]
    return found


def flip_a_bit(name: str, rank: int, step: int) -> Callable[[int, Any], None]:
    """Return what flips the lowest bit of the first value of a parameter of one rank before a step."""
    return _Flip(name, rank, step)


@dataclass(frozen=True)
class _Flip:
    name: str
    rank: int
    step: int

    def __call__(self, step: int, model: Any) -> None:
        if step == self.step and dist.get_rank() == self.rank:
            parameter = dict(model.named_parameters())[self.name]
            bits = parameter.detach().view(-1)[:1].view(torch.int32)
            bits ^= 1


@dataclass(frozen=True)
class Planted:
    """A mistake that is made before every step."""

    what: str

    def __call__(self, step: int, model: Any) -> None:
        """Call every weight of the tensor-parallel ranks a part of a weight."""
        assert self.what == "copies are parts"
        for parameter in model.parameters():
            parameter.tensor_model_parallel = True
