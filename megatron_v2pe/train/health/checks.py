"""What `--health.*` asks for between the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.health.divergence import Divergence
from megatron_v2pe.train.health.part_norms import WeightNorms
from megatron_v2pe.train.health.rank_seconds import RankSeconds
from megatron_v2pe.train.health.settings import HealthConfig
from megatron_v2pe.train.health.update_ratios import UpdateRatios


def checks_between_steps(
    settings: HealthConfig,
    model: DistributedDataParallel,
    optimizer: MegatronOptimizer,
    place_in_data: Callable[[], Mapping[str, Any] | None],
    start: str,
) -> list[AfterStep]:
    """Return what measures weights, their changes and the ranks' times, and what compares ranks.

    Args:
        settings: of the run.
        model: this rank's wrapped stage.
        optimizer: of the run.
        place_in_data: see `Divergence`.
        start: in words, what this process begins with, to go back to.
    """
    stops = settings.divergence == "stop"
    return [
        WeightNorms(model, settings.interval),
        UpdateRatios(model, optimizer, settings.interval),
        RankSeconds(model, settings.interval),
        Divergence(model, optimizer, settings.divergence_interval, stops, place_in_data, start),
    ]
