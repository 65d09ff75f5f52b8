"""The training loop: it takes batches, does one step after the other, logs each, and saves a checkpoint now and then.

The host says what a step has to do and reads its outcome once, at its end; the data of the next step are made ready
meanwhile (`step_ahead.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.device import watchdog
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.host_memory import resident_bytes
from megatron_v2pe.errors import CheckpointError, DataError
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, PixelSettings
from megatron_v2pe.train.after_step import AfterSteps
from megatron_v2pe.train.data_feed import DataFeed, Totals
from megatron_v2pe.train.ddp import gather_parameters, unwrapped
from megatron_v2pe.train.health.attention_logits import AttentionLogits
from megatron_v2pe.train.health.monitor import HealthMonitor, JudgedStep
from megatron_v2pe.train.health.profiler import StepProfiler
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.memory import shortage_explained
from megatron_v2pe.train.metrics import StepMetrics
from megatron_v2pe.train.optimizer_step import GradientParts, measure_gradients, update
from megatron_v2pe.train.signals import StopRequest
from megatron_v2pe.train.step import HostFigures, StepResult, asked_anywhere, finish_step, run_micro_batches
from megatron_v2pe.train.step_ahead import StepData, StepDataReader
from megatron_v2pe.train.writers import MetricsLog

_log = get_logger(__name__)


@dataclass
class Trainer:
    """The training loop, with all that a step needs and what is done after it."""

    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    feed: DataFeed
    device: Device
    cutter: PackCutter
    pixels: PixelSettings
    num_micro_batches: int
    seed: int
    cost: StepCost
    """Floating-point operations of what a step holds."""
    metrics: MetricsLog
    save: Callable[[int], None]
    save_interval: int | None
    peak_tflops: float | None = None
    """Peak of a device, 10^12 operations a second, that MFU is a share of; None where it is not known."""
    explain_shortage: Callable[[int, tuple[int, int]], AbstractContextManager[None]] = shortage_explained
    """Takes a step's number and what its longest pack holds; says what would help where memory runs out inside."""
    after: AfterSteps = field(default_factory=AfterSteps)
    """What is done between steps."""
    health: HealthMonitor = field(default_factory=lambda: HealthMonitor(HealthConfig(), clip_grad=0.0))
    """Judges every step."""
    parts: GradientParts | None = None
    """Says to which part of the model a gradient belongs."""
    profiler: StepProfiler = field(default_factory=lambda: StepProfiler(HealthConfig(), None, 0))
    """Traces some steps."""
    logits: AttentionLogits | None = None
    """Watches attention in some steps."""

    def run(self, start: int, train_steps: int, exit_step: int | None, stop: StopRequest) -> int:
        """Train from step `start` to `train_steps`, or until it is asked to stop; return the steps done."""
        last = min(train_steps, exit_step or train_steps)
        iteration, saved, ended_well = start, start, False
        self.model.train()
        if missed := self.after.run(start, start == train_steps):
            self.metrics.add(start, missed)
        steps = StepDataReader(self.feed, self.cutter, self.pixels, self.num_micro_batches, self._key)
        try:
            while iteration < last:
                began = time.perf_counter()
                self.profiler.begin(iteration + 1)
                watchdog.progress(f"waiting for the data of step {iteration + 1}")
                try:
                    data = steps.take(iteration, more=iteration + 1 < last)
                except DataError:  # on every rank: keep what has been learned, then say what is wrong
                    if iteration > saved:
                        self._save(iteration, last=True)
                    raise
                waited = time.perf_counter() - began
                with self.explain_shortage(iteration + 1, data.largest):
                    metrics, end = self.step(iteration, data, began, waited, stop)
                iteration += 1
                self.profiler.end(iteration)
                *asked, traces = end.asked
                if traces:
                    self.profiler.request(iteration + 1)
                stopping = stop.agree(*asked)
                self.metrics.write(metrics, {} if stopping else self.after.run(iteration, iteration == train_steps))
                if self.after.gave_way:
                    stopping = stop.agree(*asked_anywhere(stop.asked, self.device.torch_device))
                ends = stopping or iteration == last
                due = self.save_interval is not None and iteration % self.save_interval == 0
                if ends or due or self.after.asks_to_save(iteration):
                    saved = iteration if self._save(iteration, ends) else saved
                if stopping:
                    break
            ended_well = True
        finally:
            steps.close(ended_well)
            self.profiler.close(iteration)
            self.after.close()
        assert saved == iteration
        return iteration

    def _save(self, iteration: int, last: bool) -> bool:
        """Save, and return whether it was done; training goes on without a checkpoint, unless it is the last."""
        watchdog.progress(f"saving step {iteration}")
        gather_parameters(self.model)
        try:
            self.save(iteration)
        except CheckpointError as error:  # on every rank
            if last:
                raise
            _log.error("no checkpoint of step %d, training goes on: %s", iteration, error)
            return False
        self.after.saved(iteration)
        return True

    def step(
        self, iteration: int, data: StepData, began: float, waited: float, stop: StopRequest
    ) -> tuple[StepMetrics, StepResult]:
        """Do one optimizer step; one whose loss or gradients are not finite updates nothing and counts as done.

        Args:
            iteration: number of steps done.
            data: data of this step.
            began: time at which it began, with the wait for its data.
            waited: seconds this rank waited for them.
            stop: requests to stop that this rank has got.

        Raises:
            TrainingError: loss or gradients are not finite, and it is not to be skipped (`health.monitor`); nothing is
                saved after that.
        """
        totals = data.totals
        self.after.before_step(iteration + 1)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = self._watched(iteration, data.micro_batches())
        sets, reports = len(totals.drawn.names), list[Tensor]()
        watches = self.logits is not None and self.logits.begin(iteration + 1)
        loss = run_micro_batches(
            self.model, batches, self.num_micro_batches, totals.denominator, num_sets=sets, collected=reports
        )
        learning_rate = self.scheduler.get_lr({})  # the run's; parts may have others
        norms = measure_gradients(self.optimizer, self.parts)
        host = HostFigures(self.device.peak_memory_bytes(), resident_bytes(), waited)
        figures = torch.cat([norms[1:], self.logits.end()]) if self.logits is not None and watches else norms[1:]
        end = finish_step(loss, norms[0], host, (*stop.asked, self.profiler.is_requested()), figures)
        if end.is_finite:
            self.after.before_update(iteration + 1)
            update(self.optimizer, norms[0])
        values = self.health.judge(JudgedStep(iteration + 1, end, data.samples, reports), unwrapped(self.model))
        self.scheduler.step(increment=1)
        self.feed.commit(data.consumed)
        return self._measured(iteration + 1, data, end, learning_rate, time.perf_counter() - began, values), end

    def _key(self, iteration: int, index: int) -> DropPathKey:
        """Number a pack in the run's order, so that its drop-path draws do not depend on the layout."""
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        return DropPathKey(self.seed, (iteration * self.num_micro_batches + index) * ranks + rank)

    @staticmethod
    def _watched(iteration: int, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """Yield micro-batches, and report each to the watchdog as it begins."""
        index = 0
        while True:
            watchdog.progress(f"step {iteration + 1}, micro-batch {index + 1}")
            try:
                yield next(batches)
            except StopIteration:
                return
            index += 1

    def _measured(
        self,
        iteration: int,
        data: StepData,
        end: StepResult,
        learning_rate: float,
        seconds: float,
        values: Mapping[str, float],
    ) -> StepMetrics:
        totals = data.totals
        flop = self.cost.flop(totals.tokens, totals.squares, totals.tiles, totals.supervised)
        tflops = flop / seconds / dist.get_world_size() / 1e12
        return StepMetrics(
            iteration=iteration,
            loss=end.loss,
            lr=learning_rate,
            grad_norm=end.grad_norm,
            tokens=totals.tokens,
            tiles=totals.tiles,
            packs=totals.packs,
            seconds=seconds,
            tokens_per_second=totals.tokens / seconds,
            tiles_per_second=totals.tiles / seconds,
            memory_gib=end.peak_memory_bytes / 2**30,
            tflop=flop / 1e12,
            tflops_per_device=tflops,
            mfu=None if self.peak_tflops is None else tflops / self.peak_tflops,
            host_memory_gib=end.host_memory_bytes / 2**30,
            data_wait_seconds=min(end.data_wait_seconds, seconds),  # another rank may begin to wait before this step
            values={**_losses_of_sets(totals, end), **values},
        )


def _losses_of_sets(totals: Totals, end: StepResult) -> dict[str, float]:
    """Return the loss of each data set that the step learned from, by the name it has in a row."""
    drawn = totals.drawn
    of_sets = zip(drawn.names, end.set_sums, drawn.figure("weight"), strict=True)
    return {f"loss/{name}": loss / weight for name, loss, weight in of_sets if weight}
