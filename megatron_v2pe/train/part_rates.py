"""Logs the learning rate of each part of a model, where they are not all alike: `lr/<part>` in a step's row."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

from megatron.core.optimizer import MegatronOptimizer

from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.metrics import PART_RATES
from megatron_v2pe.train.optimizer_step import build_scheduler
from megatron_v2pe.train.optimizers.settings import OptimizerSettings


class PartRates(AfterStep):
    """The learning rates that the parts of a model had in a step."""

    name = "learning_rates"

    def __init__(
        self, settings: OptimizerSettings, train_steps: int, highest: Mapping[str, float], log_interval: int
    ) -> None:
        """Prepare the schedule of each part.

        Args:
            settings: of the run's optimizer.
            train_steps: steps of the run.
            highest: highest learning rate of each part.
            log_interval: steps between rows.
        """
        without_parameters = cast(MegatronOptimizer, SimpleNamespace(param_groups=[]))
        self._scheduler = build_scheduler(without_parameters, settings, train_steps)
        self._groups = {
            PART_RATES + part: {"max_lr": rate, "min_lr": settings.min_lr * (rate / settings.lr)}
            for part, rate in highest.items()
        }
        self._log_interval = log_interval

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether the step's row is logged."""
        return is_last or iteration % self._log_interval == 0

    def run(self, iteration: int) -> Mapping[str, float]:
        """Return the rates of the step just done, which is number `iteration` - 1 from 0."""
        self._scheduler.num_steps = iteration - 1
        return {name: self._scheduler.get_lr(group) for name, group in self._groups.items()}
