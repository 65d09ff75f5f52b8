"""The training loop: batches in, one step, a line of metrics, a checkpoint now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_v2pe.data.types import Batch
from megatron_v2pe.device import watchdog
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import CheckpointError, DataError, TrainingError
from megatron_v2pe.logging import get_logger
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import MicroBatch
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.metrics import MetricsLog, StepMetrics
from megatron_v2pe.train.micro_batch import Cutter, global_weight
from megatron_v2pe.train.optimizer import take_step
from megatron_v2pe.train.step import forward_backward
from megatron_v2pe.train.stop import StopRequest
from megatron_v2pe.train.wrap import gather_parameters

_log = get_logger(__name__)


@dataclass
class Trainer:
    """Everything a step needs, and what to do after it."""

    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    feed: DataFeed
    device: Device
    cutter: Cutter
    num_micro_batches: int
    seed: int
    metrics: MetricsLog
    save: Callable[[int], None]
    save_interval: int | None

    def run(self, start: int, train_steps: int, exit_step: int | None, stop: StopRequest) -> int:
        """Train from step `start` to `train_steps`, or until told to stop; return the steps done."""
        last = min(train_steps, exit_step or train_steps)
        iteration, saved = start, start
        self.model.train()
        while iteration < last:
            began = time.perf_counter()
            watchdog.progress(f"waiting for the data of step {iteration + 1}")
            try:
                batches = self.feed.step(self.num_micro_batches)
            except DataError:  # on every rank: keep what has been learned, then say what is wrong
                if iteration > saved:
                    self._save(iteration, last=True)
                raise
            metrics = self.step(iteration, batches, began)
            iteration += 1
            self.metrics.write(metrics)
            stopping = stop.agreed()
            ends = stopping or iteration == last
            if ends or (self.save_interval and iteration % self.save_interval == 0):
                saved = iteration if self._save(iteration, ends) else saved
            if stopping:
                break
        assert saved == iteration
        return iteration

    def _save(self, iteration: int, last: bool) -> bool:
        """Save; tell whether it was done. Training goes on where a checkpoint, but for the last, cannot be written."""
        watchdog.progress(f"saving step {iteration}")
        gather_parameters(self.model)
        try:
            self.save(iteration)
        except CheckpointError as error:  # on every rank
            if last:
                raise
            _log.error("no checkpoint of step %d, training goes on: %s", iteration, error)
            return False
        return True

    def step(self, iteration: int, batches: list[Batch], began: float) -> StepMetrics:
        """Do one optimizer step.

        Raises:
            TrainingError: loss or gradients are not finite; nothing is saved after that.
        """
        denominator = global_weight(batches, parallel_state.get_data_parallel_group(), self.device.torch_device)
        micro_batches = (self._micro_batch(batch, iteration, index) for index, batch in enumerate(batches))
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = forward_backward(self.model, micro_batches, len(batches), denominator)
        _check_finite("loss", loss, iteration + 1)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        _check_finite("norm of the gradients", grad_norm := take_step(self.optimizer), iteration + 1)
        self.scheduler.step(increment=1)
        self.feed.commit()
        self.device.synchronize()
        return self._measure(iteration + 1, loss, learning_rate, grad_norm, batches, began)

    def _micro_batch(self, batch: Batch, iteration: int, index: int) -> MicroBatch:
        """Number the pack in the run's order, so that its drop-path draws do not depend on the layout."""
        ranks = parallel_state.get_data_parallel_world_size()
        rank = parallel_state.get_data_parallel_rank()
        pack = (iteration * self.num_micro_batches + index) * ranks + rank
        key = DropPathKey(self.seed, pack)
        watchdog.progress(f"step {iteration + 1}, micro-batch {index + 1}")
        return self.cutter.cut(batch, key)

    def _measure(
        self,
        iteration: int,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        batches: list[Batch],
        began: float,
    ) -> StepMetrics:
        counts = torch.tensor(
            [sum(b.input_ids.shape[0] for b in batches), sum(sum(b.num_tiles) for b in batches), len(batches)],
            device=self.device.torch_device,
        )
        dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
        tokens, tiles, packs = counts.tolist()
        memory = torch.tensor(self.device.peak_memory_bytes(), device=self.device.torch_device)
        dist.all_reduce(memory, op=dist.ReduceOp.MAX)
        seconds = time.perf_counter() - began
        return StepMetrics(
            iteration=iteration,
            loss=loss,
            lr=learning_rate,
            grad_norm=grad_norm,
            tokens=tokens,
            tiles=tiles,
            packs=packs,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            tiles_per_second=tiles / seconds,
            memory_gib=memory.item() / 2**30,
        )


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"step {step}: the {what} is {value}; the last checkpoint was written before that. "
            "Resume with a lower optimizer.lr, or look at the samples of this step"
        )
