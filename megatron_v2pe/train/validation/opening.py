"""Opening the validation of a run: its data, whether training sees them, the packs of each rank, and their feed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.batch import PackReader
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.hold_out import training_sets
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.overlap import IndexedTraining, Overlap, find_overlap, overlap_words, refusal
from megatron_v2pe.data.validation_sets import ValidationPlan, ValidationReader, ValidationSet, open_validation_sets
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, share_from_first_rank
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.parallel import topology
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.data_feed import DataFeed, HostGroups
from megatron_v2pe.train.validation.work import Validation, check_best_by

_NO_LIMIT = 10**12
_log = get_logger(__name__)


class ValidatedRun(Protocol):
    """What of a run (`train/training_run.py`) its validation needs."""

    @property
    def config(self) -> ExperimentConfig:
        """Return the settings."""
        ...

    @property
    def world(self) -> launch.World:
        """Return this rank, and how many there are."""
        ...

    @property
    def device(self) -> Device:
        """Return the device of this rank."""
        ...

    @property
    def groups(self) -> ProcessGroupCollection:
        """Return the process groups of the layout."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of parameters and activations."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """Return what the data pipeline knows of the model."""
        ...

    @property
    def encoder(self) -> DocumentEncoder:
        """Return what makes documents of training samples."""
        ...


def open_sets(config: ExperimentConfig, encoder: DocumentEncoder) -> list[ValidationSet]:
    """Open the data sets that a run is validated on.

    Args:
        config: settings of the run, whose template and positions are known.
        encoder: encoder of the run; validation draws with a seed of its own.

    Raises:
        ConfigError: the data list is wrong, or an indexed set was built with other settings.
        DataError: an indexed set is damaged.
    """
    settings = config.validation
    data = settings.data(config.data)
    own = DocumentEncoder(data, encoder.tokenizer, encoder.facts, config.v2pe.policy(settings.seed), settings.seed)
    return open_validation_sets(data, own, settings.hold_out, settings.max_samples, settings.seed)


def overlap_with_training(
    config: ExperimentConfig, sets: list[ValidationSet], tell: Callable[[], None] = lambda: None
) -> list[Overlap]:
    """Return what of the validation data is trained on; all training data are looked at."""
    hold_out = config.validation.hold_out
    if not config.data.indexed_path:
        return find_overlap(sets, training_sets(config.data.meta_path, hold_out), tell)
    samples = IndexedSamples(config.data.indexed_path)
    numbers = None if hold_out is None else hold_out.training_samples(samples)[1]
    return find_overlap(sets, IndexedTraining(samples, numbers), tell)


def check_overlap(
    config: ExperimentConfig, sets: list[ValidationSet], tell: Callable[[], None] = lambda: None
) -> str | None:
    """Refuse validation data that are trained on; where they are allowed, return in words how many these are.

    Raises:
        ConfigError: names the counts of each data set, an example, and what to do.
    """
    found = overlap_with_training(config, sets, tell)
    if not found:
        return None
    if not config.validation.allow_overlap:
        raise ConfigError(refusal(found, sets, held_out=config.validation.hold_out is not None))
    return overlap_words(found, sets)


def _planned(run: ValidatedRun, sets: list[ValidationSet]) -> ValidationPlan:
    """Look for samples that training sees, and plan the packs; on the first rank."""
    tell = partial(watchdog.progress, "looking at the validation data")
    check_best_by(run.config.validation, tuple(one.name for one in sets))
    if (words := check_overlap(run.config, sets, tell)) is not None:
        _log.warning("validation: %s (validation.allow_overlap)", words)
    plan = ValidationPlan.of(sets, run.config.validation.data(run.config.data), tell)
    how = "the end" if run.config.validation.interval is None else f"every {run.config.validation.interval:,} steps"
    _log.info(
        "validation: %d samples of %s in %d packs, %s",
        *(plan.samples, ", ".join(plan.names[:5]) + ", ..." * (len(plan.names) > 5), len(plan.packs), how),
    )
    return plan


@dataclass(frozen=True)
class ValidationData:
    """The data of a run's validation, looked at."""

    sets: list[ValidationSet]
    """Data sets, on ranks that read for their copy of the model; empty on the others."""
    plan: ValidationPlan


def open_validation_data(run: ValidatedRun) -> ValidationData:
    """Open the validation data of a run and look at them, before its model is loaded; every rank calls this.

    Raises:
        ConfigError: the data are wrong, or trained on.
        DataError: they cannot be used.
    """
    reads = topology.model_copy_group().rank() == 0
    watchdog.progress("opening the validation data")
    sets = raise_on_all_ranks(lambda: open_sets(run.config, run.encoder) if reads else [])
    return ValidationData(sets, share_from_first_rank(lambda: _planned(run, sets)))


def open_validation(
    run: ValidatedRun, found: ValidationData, model: DistributedDataParallel, cutter: PackCutter, save: Path | None
) -> Validation:
    """Open the validation of a run; every rank calls this.

    Args:
        run: the run, whose settings ask for a validation.
        found: its validation data.
        model: this rank's wrapped stage.
        cutter: makes this rank's share of a pack.
        save: folder of the run's checkpoints.
    """
    config, parallel, plan = run.config.validation, run.config.parallel, found.plan
    data = config.data(run.config.data)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    at_a_time = 1 if parallel.pipeline_model_parallel_size == 1 else 2 * parallel.pipeline_model_parallel_size
    packs = plan.of_rank(rank, size, at_a_time)
    mean_std = NORMALISATION[data.normalize_type]
    reader = PackReader(run.facts.tile_size, mean_std[0], data.loss_reduction, run.encoder.denominator)
    loader = ValidationReader(found.sets, packs, reader, max(data.num_workers, 1)) if found.sets else None
    groups = HostGroups.open(
        topology.model_copies(parallel, run.world.world_size), parallel.distributed_timeout_minutes
    )
    tile_ranks = dist.get_process_group_ranks(run.groups.tp_cp) if run.groups.pp.rank() == 0 else None
    coordinates = topology.coordinates_of(parallel, run.groups)
    return Validation(
        config=config,
        model=model,
        feed=DataFeed(loader, groups, tile_ranks, coordinates, _NO_LIMIT, plan.names),
        plan=plan,
        packs=packs,
        at_a_time=at_a_time,
        cutter=cutter,
        pixels=PixelSettings(run.device.torch_device, run.dtype, mean_std),
        save=save,
    )
