"""A training run from its configuration to its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.base import exit_status
from megatron_v2pe.base.config_tree import to_dict
from megatron_v2pe.base.logging import FILE_ONLY, get_logger, keep_log, setup_logging
from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.checkpoint import store
from megatron_v2pe.checkpoint.conversions import start_folder
from megatron_v2pe.checkpoint.folder import HF_FOLDER, newest, offer_others
from megatron_v2pe.checkpoint.resolve import hf_folder, resume_folder
from megatron_v2pe.checkpoint.trained import start_config
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.loader import PackLoader, build_loader
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.device.cards import peak_tflops
from megatron_v2pe.device.cuda_start import check_precision
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, run_on_first_rank, share_from_first_rank
from megatron_v2pe.errors import CheckpointError, ConfigError, DataError, V2PEError
from megatron_v2pe.models.build import build_model, model_sizes
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.layer_specs import choose_spec
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.attention.attention_backend import check_backend
from megatron_v2pe.train.config import CONFIG_FILE, ExperimentConfig
from megatron_v2pe.train.data_feed import DataFeed, HostGroups
from megatron_v2pe.train.ddp import freeze, wrap
from megatron_v2pe.train.epochs import packs_of_epoch, steps_left
from megatron_v2pe.train.header import Start, header
from megatron_v2pe.train.loop import Trainer
from megatron_v2pe.train.memory import Budget, packs_per_step, plan_of_stage, shortage_explained, shortage_foreseen
from megatron_v2pe.train.optimizer import apply_settings, build_optimizer, build_scheduler
from megatron_v2pe.train.preflight.checkpoint import check_checkpoint, what_changes, what_holds, what_is_lost
from megatron_v2pe.train.signals import StopRequest
from megatron_v2pe.train.writers import MetricsLog, check_writers
from megatron_v2pe.v2pe.settings import StridePolicy

LOG = "train.log"
"""Name of the log beside the metrics."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_log = get_logger(__name__)


@dataclass(frozen=True)
class Run:
    """What all parts of a run share."""

    config: ExperimentConfig
    world: launch.World
    device: Device
    groups: ProcessGroupCollection
    start: Path
    """Megatron checkpoint folder the weights come from."""
    model: InternVLConfig
    policy: StridePolicy
    tokenizer: Tokenizer
    budget: Budget
    """What decides about memory."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and activations."""
        return _DTYPES[self.config.train.precision]

    @property
    def packs_per_step(self) -> int:
        """Packs of a step, over all ranks."""
        return packs_per_step(self.budget)

    @property
    def facts(self) -> ModelFacts:
        """What the data pipeline has to know of the model."""
        return ModelFacts(self.model.tile_size, self.model.tokens_per_tile)

    @property
    def encoder(self) -> DocumentEncoder:
        """What makes documents of samples."""
        return DocumentEncoder(self.config.data, self.tokenizer, self.facts, self.policy, self.config.train.seed)


def run(config: ExperimentConfig, notices: Sequence[str] = ()) -> int:
    """Train as configured, resuming where the run's folder holds a checkpoint; return the exit status.

    Args:
        config: of the run, checked (`ExperimentConfig.validate`) for the ranks there are.
        notices: what was said of its command line, for the log that is kept.
    """
    world = launch.read_environment()
    setup_logging(world.rank)
    config = config.with_recorded_strides()
    check_writers(config.logging)
    device = Device.choose(config.train.device, world.local_rank)
    if device.kind == "cuda":
        check_precision(config.train.precision, device.index)
    elif config.optimizer.keeps_state_on_host:
        raise ConfigError(
            f"optimizer.{config.optimizer.host_state_setting} moves state off a GPU, but this run is on the CPU"
        )
    check_backend(config.parallel.attention_backend, device.torch_device)
    minutes = config.parallel.distributed_timeout_minutes
    logs = _log_folder(config)
    with (
        launch.joined(world, device, minutes, logs, topology.destroy),
        _locked(config.checkpoint.save),
        _kept(logs, world.rank),
    ):
        for notice in notices:
            _log.warning("%s", notice, extra=FILE_ONLY)
        return _train(_prepare(config, world, device))


@contextmanager
def _locked(save: str | None) -> Iterator[None]:
    """Hold the run's folder, on rank 0 for all of them; another run in it is refused on every rank."""
    lock = FolderLock(Path(save or "."), "a training run")
    if save is not None:
        run_on_first_rank(lock.take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _kept(logs: Path | None, rank: int) -> Iterator[None]:
    """Keep what rank 0 logs in a file of the run, with the error that ends it."""
    with ExitStack() as stack:
        run_on_first_rank(lambda: stack.enter_context(keep_log(None if logs is None else logs / LOG)))
        try:
            yield
        except Exception as error:
            if rank == 0:
                told = isinstance(error, (V2PEError, OSError))
                _log.error("%s", error, exc_info=not told, extra=FILE_ONLY)
            raise


def _prepare(config: ExperimentConfig, world: launch.World, device: Device) -> Run:
    """Find the checkpoint, check the layout against it, create the process groups."""
    _log.info("device: %s", _where(device, world))
    watchdog.progress("looking for the checkpoint")
    model = check_checkpoint(config)
    save = config.checkpoint.save
    older = [Path(save) / "converted"] if save else []  # where earlier versions kept what a run converted
    name, cache = config.model.model_name_or_path, config.model.converted_dir
    start = start_folder(name, cache, config.checkpoint.verify, older)
    hf = hf_folder(start)
    if world.rank == 0:
        for line in what_holds(config):
            _log.info("%s", line)
        for line in what_is_lost(config.data):
            _log.warning("%s", line)
    config.parallel.validate(world.world_size, model_sizes(model))
    groups = topology.initialize(config.parallel, config.train.seed)
    tokenizer = Tokenizer.of_model(config.model.tokenizer_path or hf, model.llm.vocab_size)
    policy = config.v2pe.policy(config.train.seed)
    budget = Budget(config, model, world.world_size, _smallest_card(device))
    return Run(config, world, device, groups, start, model, policy, tokenizer, budget)


def _smallest_card(device: Device) -> int | None:
    """Return the bytes of memory of the smallest card of all ranks; None on the CPU."""
    mine = device.memory_bytes()
    if mine is None:
        return None
    smallest = torch.tensor(mine, device=device.torch_device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest.item())


def _train(run: Run) -> int:
    config = run.config
    watchdog.progress("building the model")
    model = _model(run)
    watchdog.progress("loading the checkpoint")
    resumed = resume_folder(config.checkpoint.save, config.checkpoint.load, config.checkpoint.resume)
    if resumed is None:
        store.load_model(run.start, model, config.checkpoint.verify)
    wrapped = wrap(model, config.parallel, run.groups, run.device.torch_device)
    optimizer = build_optimizer(
        wrapped,
        config.optimizer,
        run.dtype,
        config.parallel.use_distributed_optimizer,
        config.parallel.overlap_param_gather,
        run.groups,
    )
    state = _resume(resumed, model, optimizer, config.checkpoint.verify) if resumed is not None else None
    iteration = state.iteration if state else 0
    run = _counted(run, state.loader if state else None, iteration)
    config = run.config
    scheduler = build_scheduler(optimizer, config.optimizer, config.train.train_steps)
    apply_settings(optimizer, config.optimizer)
    scheduler.step(increment=iteration)
    watchdog.progress("opening the data")
    feed = _feed(run, state.loader if state else None)
    rank, steps = run.world.rank, min(config.train.train_steps, config.train.exit_step or config.train.train_steps)
    where = _where(run.device, run.world)
    metrics = raise_on_all_ranks(lambda: MetricsLog(config.logging, _log_folder(config), rank, iteration, steps, where))
    _introduce(run, feed, Start(run.start, resumed, iteration, _log_folder(config)))
    stated = start_config(run.start)
    stop = StopRequest()
    trainer = Trainer(
        model=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        feed=feed,
        device=run.device,
        cutter=_cutter(run),
        pixels=PixelSettings(run.device.torch_device, run.dtype, NORMALISATION[run.config.data.normalize_type]),
        num_micro_batches=config.train.micro_batches(parallel_state.get_data_parallel_world_size()),
        seed=config.train.seed,
        cost=_cost(run),
        metrics=metrics,
        save=lambda step: _save(run, model, optimizer, feed, stated, step),
        save_interval=config.checkpoint.save_interval,
        peak_tflops=_peak(run),
        explain_shortage=partial(shortage_explained, budget=run.budget),
    )
    try:
        done = trainer.run(iteration, config.train.train_steps, config.train.exit_step, stop)
    finally:
        metrics.close()
        stop.restore()
    _report(run, metrics.rates(), iteration, done)
    return stop.status if done < config.train.train_steps else exit_status.FINISHED


def _counted(run: Run, state: dict[str, Any] | None, iteration: int) -> Run:
    """Return the run with the steps its epochs take, counted on rank 0 from where its data are."""
    epochs = run.config.train.epochs
    if epochs is None:
        return run

    def count() -> int:
        watchdog.progress("counting the packs of the run's epochs")
        tell = partial(watchdog.progress, "counting the packs of the run's epochs")
        return steps_left(run.config.data, epochs, run.encoder, run.packs_per_step, state, tell)

    left = share_from_first_rank(count)
    if not iteration + left:
        raise DataError(f"train.epochs {epochs:g}: not one sample of the data can be used")
    config = run.config.updated({"train": {"train_steps": iteration + left}}, "train.epochs")
    return replace(run, config=config, budget=replace(run.budget, config=config))


def _introduce(run: Run, feed: DataFeed, start: Start) -> None:
    """Say what is about to be trained, and how; rank 0 knows the data."""
    loader = feed.loader
    if run.world.rank or not isinstance(loader, PackLoader):
        return
    packs = packs_of_epoch(run.config.data, run.encoder)
    for line in header(run.budget, loader.plan, packs, start):
        _log.info("%s", line)
    for line in what_changes(run.config, start.resumed) if start.resumed is not None else ():
        _log.warning("%s", line)


def _where(device: Device, world: launch.World) -> str:
    return f"{device.describe()}; {world.world_size} rank{'s' if world.world_size > 1 else ''}"


def _cost(run: Run) -> StepCost:
    return StepCost.of(run.model, run.budget.learning)


def _peak(run: Run) -> float | None:
    """Return what a rate is a share of: as stated, or of the card; none on the CPU."""
    if run.config.logging.peak_tflops is not None or run.device.kind != "cuda":
        return run.config.logging.peak_tflops
    return peak_tflops(torch.cuda.get_device_name(run.device.index))


def _cutter(run: Run) -> PackCutter:
    return PackCutter(
        coordinates=topology.coordinates_of(run.config.parallel, run.groups),
        first_stage=run.groups.pp.rank() == 0,
        image_token_id=run.tokenizer.img_context_id,
        tokens_per_tile=run.model.tokens_per_tile,
    )


def _model(run: Run) -> InternVLModel:
    train, settings = run.config.train, run.config.model
    plan = plan_of_stage(run.budget, run.groups.pp.rank())
    for stage in range(run.budget.stages):
        if (warning := shortage_foreseen(run.budget, stage)) is not None and run.world.rank == 0:
            _log.warning("%s", warning)
    options = ModelOptions(
        params_dtype=run.dtype,
        spec=choose_spec(settings.spec, run.device.kind == "cuda"),
        recompute_granularity=train.recompute_granularity,
        recompute_method=train.recompute_method if train.recompute_granularity == "full" else None,
        recompute_num_layers=train.recompute_num_layers if train.recompute_granularity == "full" else None,
        keep_attention=not train.recompute_attention,
        recompute_vision=train.recompute_vision,
        recompute_plan=plan,
        drop_path_rate=settings.drop_path_rate,
        head_chunk_size=settings.head_chunk_size,
        mlp_chunk_tokens=settings.mlp_chunk_tokens,
        perform_initialization=False,
    )
    image_token = run.tokenizer.img_context_id
    model = build_model(run.model, run.config.parallel, options, run.policy, image_token, run.groups)
    freeze(
        model,
        backbone=settings.freeze_backbone,
        llm=settings.freeze_llm,
        projector=settings.freeze_mlp,
        unfreeze_vit_layers=settings.unfreeze_vit_layers,
    )
    return model


def _resume(folder: Path, model: InternVLModel, optimizer: Any, verify: bool) -> store.TrainingState:
    try:
        return store.load_training(folder, model, optimizer, verify)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{offer_others(folder)}") from error


def _feed(run: Run, state: dict[str, Any] | None) -> DataFeed:
    """Read on the first rank of each copy of the model; tiles go to the first pipeline stage only."""
    model_group, ranks = topology.model_copy_group(), parallel_state.get_data_parallel_world_size()

    def open_loader() -> PackLoader | None:
        if model_group.rank() > 0:
            return None
        return build_loader(
            run.config.data,
            run.tokenizer,
            run.facts,
            run.policy,
            seed=run.config.train.seed,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=ranks,
            packs_per_step=run.packs_per_step,
            state=state,
            epochs=run.config.train.epochs,
            read_seconds=60 * run.config.parallel.distributed_timeout_minutes,
        )

    loader = raise_on_all_ranks(open_loader)
    parallel = run.config.parallel
    copies = topology.model_copies(parallel, run.world.world_size)
    groups = HostGroups.open(copies, parallel.distributed_timeout_minutes)
    tile_ranks = dist.get_process_group_ranks(run.groups.tp_cp) if run.groups.pp.rank() == 0 else None
    limit = run.config.data.max_skipped_samples
    return DataFeed(loader, groups, tile_ranks, topology.coordinates_of(parallel, run.groups), limit)


def _save(
    run: Run, model: InternVLModel, optimizer: Any, feed: DataFeed, stated: Mapping[str, str], iteration: int
) -> None:
    """Write a checkpoint, its configuration and tokenizer from where the run started, `stated` in place of its own."""
    settings = run.config.checkpoint
    if settings.save is None:
        return
    state = store.TrainingState(iteration, feed.state_dict(), to_dict(run.config))
    source = run.start
    if not (source / HF_FOLDER).is_dir():  # one of this run's own that was too old to keep: later ones have its files
        source = newest(Path(settings.save)) or source
    files = {CONFIG_FILE: run.config.to_yaml(), **stated}
    store.save(Path(settings.save), model, optimizer, state, source, settings.keep_latest, files)


def _log_folder(config: ExperimentConfig) -> Path | None:
    if config.logging.dir:
        return Path(config.logging.dir)
    return Path(config.checkpoint.save) / "logs" if config.checkpoint.save else None


def _report(run: Run, rates: str, start: int, done: int) -> None:
    total = run.config.train.train_steps
    where = f"; checkpoints in {run.config.checkpoint.save}" if run.config.checkpoint.save else "; nothing was saved"
    how = "finished" if done >= total else "stopped, run the same command to go on"
    speed = f"; {rates}" if rates else ""
    _log.info("%s after step %d of %d (%d now)%s%s", how, done, total, done - start, where, speed)
