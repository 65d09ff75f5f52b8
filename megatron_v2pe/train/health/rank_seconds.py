"""Which rank is the slow one: how long each computes in a step until gradients are exchanged, compared now and then.

All ranks end a step together, since they wait for each other in its exchanges. What is timed is therefore forward and
backward of all micro-batches up to the point where the gradients of the copies of the model are added up: the device's
own time on CUDA (two events, read when the step is over), the host's on a CPU. Within a copy of the model ranks wait
for each other in every layer or stage, so that the time of one is nearly that of all in its copy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel

from megatron_v2pe.train.after_step import AfterStep

SLOWEST = "health/slowest_rank"
SECONDS = "health/rank_seconds"


class RankSeconds(AfterStep):
    """The shortest, the mean and the longest time of a rank in a step, and the number of the rank that took longest."""

    name = "seconds by rank"

    def __init__(self, model: DistributedDataParallel, interval: int | None) -> None:
        """Remember this rank's wrapped stage, and the steps between two measurements; None: never."""
        self._model, self._interval = model, interval
        self._step = -1
        self._marks = list[Any]()
        """Beginning and end of the part of the step that is timed."""

    def before_step(self, step: int) -> None:
        """Time the step, if it is its turn, up to where its gradients are exchanged."""
        self._marks.clear()
        if self._interval is None or step % self._interval:
            return
        config: Any = self._model.config
        finalize = config.finalize_model_grads_func

        def mark_and_finalize(*arguments: Any, **settings: Any) -> Any:
            self._marks.append(self._now())
            config.finalize_model_grads_func = finalize
            return finalize(*arguments, **settings)

        config.finalize_model_grads_func = mark_and_finalize
        self._step = step
        self._marks.append(self._now())

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether the step that was done last was timed."""
        return self._step == iteration and len(self._marks) == 2

    def run(self, iteration: int) -> Mapping[str, float]:
        """Return `health/rank_seconds/min`, `mean` and `max`, and `health/slowest_rank`; every rank calls this."""
        seconds = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=self._device())
        seconds[dist.get_rank()] = self._between(*self._marks)
        self._marks.clear()
        dist.all_reduce(seconds)
        of_ranks: list[float] = seconds.tolist()
        longest, mean = max(of_ranks), sum(of_ranks) / len(of_ranks)
        named = {"min": min(of_ranks), "mean": mean, "max": longest}
        return {f"{SECONDS}/{name}": value for name, value in named.items()} | {SLOWEST: float(of_ranks.index(longest))}

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _now(self) -> Any:
        """Return a mark in the work of the device, or the host's time where it computes itself."""
        if self._device().type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self._device().type != "cuda":
            return end - begin
        end.synchronize()  # the step is over: nothing to wait for
        return begin.elapsed_time(end) / 1000
