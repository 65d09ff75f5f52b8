"""Validation as work between the steps of a run: when it is due, what it logs, which checkpoints it has kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.checkpoint.best import BestCheckpoints
from megatron_v2pe.checkpoint.folder import iterations
from megatron_v2pe.data.validation_sets import ValidationPack, ValidationPlan
from megatron_v2pe.device import watchdog
from megatron_v2pe.device.rank_errors import share_from_first_rank
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.train.after_step import AfterStep
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.ddp import gather_parameters
from megatron_v2pe.train.validation.losses import validation_losses
from megatron_v2pe.train.validation.settings import LOSS, ValidationConfig

_log = get_logger(__name__)


@dataclass
class Validation(AfterStep):
    """Computes the loss of the validation data on every rank, and keeps the checkpoints that are best by it."""

    config: ValidationConfig
    model: DistributedDataParallel
    feed: DataFeed
    """Gives the packs of this rank's copy of the model; its groups are its own."""
    plan: ValidationPlan
    packs: list[ValidationPack]
    """Packs of this rank's copy of the model."""
    at_a_time: int
    """Packs that go through the pipeline together."""
    cutter: PackCutter
    pixels: PixelSettings
    save: Path | None
    """Folder of the run's checkpoints."""

    name = "validation"
    _asks = False

    @property
    def at_start(self) -> bool:
        """Whether it is done before the first step too."""
        return self.config.at_start

    def is_due(self, iteration: int, is_last: bool) -> bool:
        """Return whether the interval has passed, or the run ends or begins with one."""
        if not iteration:
            return self.config.at_start
        return is_last or (self.config.interval is not None and iteration % self.config.interval == 0)

    def run(self, iteration: int) -> Mapping[str, float] | None:
        """Compute the losses; take note of the value by which checkpoints are compared."""
        values = self.losses(iteration)
        if values is not None and self.config.keep_best:
            self._asks = share_from_first_rank(lambda: self._is_among_best(iteration, values))
        return values

    def losses(self, iteration: int) -> dict[str, float] | None:
        """Return the losses by name, with the tokens and seconds they took; every rank calls this.

        None, on all ranks, where one was asked to stop meanwhile.
        """
        began = time.perf_counter()
        gather_parameters(self.model)
        found = validation_losses(
            self.model,
            self.feed,
            self.plan.names,
            len(self.packs),
            self.cutter,
            self.pixels,
            self.at_a_time,
            lambda done, total: watchdog.progress(f"validation after step {iteration}, pack {done + 1} of {total}"),
            self.is_asked_to_stop,
        )
        if found is None:
            return None
        values = {} if found.loss is None else {LOSS: found.loss}
        values |= {f"{LOSS}/{name}": loss for name, loss in found.by_set.items()}
        if broken := [name for name, value in values.items() if not math.isfinite(value)]:
            _log.error("validation after step %d: not finite, and not logged: %s", iteration, ", ".join(broken))
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        return {**values, "validation/tokens": found.tokens, "validation/seconds": time.perf_counter() - began}

    def _is_among_best(self, iteration: int, values: Mapping[str, float]) -> bool:
        """Note the value of a step in the run's folder, on rank 0; return whether its checkpoint would be kept."""
        by, root = self.config.best_by, self.save
        assert root is not None
        if by not in values:  # nothing of that set is supervised, or its loss is not finite
            _log.warning("validation after step %d has no %s; it decides about no checkpoint", iteration, by)
            return False
        there, known = iterations(root), BestCheckpoints.read(root)
        if (known.by, known.greater_is_better) != (by, self.config.greater_is_better):
            known = BestCheckpoints(by, 0, self.config.greater_is_better)
        known = replace(known, keep=self.config.keep_best).with_value(iteration, values[by], there)
        known.write(root)
        return iteration in known.best([*(step for step in there if step < iteration), iteration])

    def asks_to_save(self) -> bool:
        """Return whether the last validation was among the best that are kept."""
        return self._asks

    def saved(self, iteration: int) -> None:
        """Ask for no further checkpoint."""
        self._asks = False

    def state_dict(self) -> dict[str, Any]:
        """Return what decides which samples are held out, so that a run that goes on holds out the same."""
        return {"share": self.config.share, "seed": self.config.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compare the samples that are held out with those of the run so far.

        Raises:
            ConfigError: others were held out; those held out now have been trained.
        """
        before, now = {**state}, self.state_dict()
        if self.config.share and before != now:
            raise ConfigError(
                "the run so far has held out other samples for validation, or none: those that would be held out now "
                f"have been trained (it had {printable(before)[:80]}, now {now}). Give the validation.share and "
                "validation.seed it was started with, or start a new run from it: --model_name_or_path RUN "
                "--checkpoint.save OTHER"
            )


def check_best_by(config: ValidationConfig, names: tuple[str, ...]) -> None:
    """Check that checkpoints are compared by a value that there will be.

    Args:
        config: settings of the validation.
        names: names of its data sets.

    Raises:
        ConfigError: `best_by` names a data set that there is not; names the nearest.
    """
    known = (LOSS, *(f"{LOSS}/{name}" for name in names))
    if config.keep_best and config.best_by not in known:
        raise ConfigError(
            f"validation.best_by is {config.best_by!r}, which is no value of this validation"
            f"{did_you_mean(config.best_by, known)}"
        )
