"""Which work a run does between its steps, by its settings: what `after_step.py` defines, built of the run's parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_v2pe.checkpoint.folder import TRAINING_STATE
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.train.after_step import AfterStep, AfterSteps
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.health.checks import checks_between_steps
from megatron_v2pe.train.health.monitor import HealthMonitor
from megatron_v2pe.train.optimizers.parts import shown_rates
from megatron_v2pe.train.part_rates import PartRates
from megatron_v2pe.train.run_record import open_record
from megatron_v2pe.train.setup import cutter_of
from megatron_v2pe.train.training_run import Loaded, TrainingRun
from megatron_v2pe.train.validation.opening import open_validation, open_validation_data
from megatron_v2pe.train.validation.work import Validation


def after_steps(run: TrainingRun, loaded: Loaded, feed: DataFeed, health: HealthMonitor) -> AfterSteps:
    """Build what the run does between its steps, in the state that a checkpoint it goes on from holds.

    Args:
        run: run to be trained, its steps counted.
        loaded: its model and optimizer.
        feed: its data.
        health: judges its steps.

    Raises:
        CheckpointError: the state is damaged.
        ConfigError: what is to be done cannot be.
        DataError: data of it are missing or damaged.
    """
    start = f"the weights it began with, {run.start}" if loaded.resumed is None else f"the checkpoint {loaded.resumed}"
    checks = checks_between_steps(run.config.health, loaded.wrapped, loaded.optimizer, feed.place, printable(start))
    works: list[AfterStep] = [health, *checks]
    if run.config.validation.is_on:
        works.append(validation_of(run, loaded))
    optimizer, steps = run.config.optimizer, run.config.train.train_steps
    if rates := shown_rates(optimizer, run.model.vision.num_layers, _frozen_parts(run.budget.learning)):
        works.append(PartRates(optimizer, steps, rates, run.config.logging.log_interval))
    if run.config.evaluation.benchmarks:
        from megatron_v2pe.train.evaluation.work import Evaluation, Trained  # nothing else of training knows generation

        parts = loaded.model, loaded.wrapped, run.groups, run.device, run.dtype
        works.append(Evaluation(Trained(run.config, run.start, run.tokenizer, run.model.llm.vocab_size, *parts)))
    if run.config.logging.page:
        logs = run.logs if run.world.rank == 0 else None
        record = open_record(run.budget, run.tokenizer, run.where, logs, loaded.iteration, feed)
        works.append(record)  # the last: its page shows what the others gave
    after = AfterSteps(works)
    if loaded.resumed is not None:
        after.load_state_dict(loaded.after_steps, f"{printable(loaded.resumed / TRAINING_STATE)}: after_steps")
    return after


def with_validation_data(run: TrainingRun) -> TrainingRun:
    """Return the run with its validation data opened and looked at, where it has some; every rank calls this.

    Raises:
        ConfigError: the data are wrong, or trained on.
        DataError: they cannot be used.
    """
    return replace(run, validation_data=open_validation_data(run)) if run.config.validation.is_on else run


def validation_of(run: TrainingRun, loaded: Loaded) -> Validation:
    """Open the validation of a run, whose data have been opened."""
    save = run.config.checkpoint.save
    assert run.validation_data is not None
    return open_validation(run, run.validation_data, loaded.wrapped, cutter_of(run), Path(save) if save else None)


def _frozen_parts(learning: Learning) -> set[str]:
    """Return the parts of which nothing learns, adapters in them left out of account."""
    learns = {
        "vision": learning.backbone or bool(learning.unfreeze_vit_layers),
        "projector": learning.projector,
        "language": learning.llm,
        "embedding": learning.llm or learning.tables,
    }
    return {part for part, does in learns.items() if not does}
