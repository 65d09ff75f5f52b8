"""The parts a run is made of: its checkpoint, process groups, model stage and data, each built from what is before it.

`train/main.py` calls these functions in their order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.adapters import AdapterPointer
from megatron_v2pe.checkpoint.conversions import start_folder
from megatron_v2pe.checkpoint.folder import ADAPTER_FILE
from megatron_v2pe.checkpoint.resolve import hf_folder
from megatron_v2pe.data.loader import PackLoader, Plan, build_loader
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.device.cards import peak_tflops
from megatron_v2pe.device.cuda_start import check_precision
from megatron_v2pe.device.device import Device
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, share_from_first_rank
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.models.build import build_model, model_sizes
from megatron_v2pe.models.config import layout_of
from megatron_v2pe.models.layer_specs import choose_spec
from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.micro_batch import PackCutter
from megatron_v2pe.models.recompute import RecomputePlan
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.attention.attention_backend import check_backend
from megatron_v2pe.train.adapter_plan import plan_of
from megatron_v2pe.train.adapter_start import RunTokens, starting_tensors
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.data_feed import DataFeed, HostGroups
from megatron_v2pe.train.ddp import freeze
from megatron_v2pe.train.epochs import packs_of_epoch, steps_left
from megatron_v2pe.train.header import Start, header
from megatron_v2pe.train.memory import MemoryBudget, plan_of_stage, shortage_foreseen
from megatron_v2pe.train.new_rows import learn_new_rows
from megatron_v2pe.train.new_tokens import (
    growth_of_run,
    pieces_in_words,
    rows_of_checkpoints,
    rows_to_learn,
    with_growth,
)
from megatron_v2pe.train.optimizer_step import check_precision_aware
from megatron_v2pe.train.preflight.checkpoint import (
    changes_from_before,
    changes_from_start,
    check_checkpoint,
    tiling_not_exported,
)
from megatron_v2pe.train.training_run import TrainingRun, where

_log = get_logger(__name__)


def choose_device(config: ExperimentConfig, local_rank: int) -> Device:
    """Return the device of this rank, on which the run's precision and kernels have been tried.

    Raises:
        ConfigError: there is no such device, or it cannot do what the run asks for.
    """
    device = Device.choose(config.train.device, local_rank)
    if device.kind == "cuda":
        check_precision(config.train.precision, device.index)
    elif config.optimizer.keeps_state_on_host:
        switch = config.optimizer.host_state_setting
        raise ConfigError(f"optimizer.{switch} moves state off a GPU, but this run is on the CPU")
    if (switch := config.optimizer.precision_aware_setting) is not None:
        check_precision_aware(f"optimizer.{switch}", device.kind == "cuda")
    check_backend(config.parallel.attention_backend, device.torch_device)
    return device


def prepare(config: ExperimentConfig, world: launch.World, device: Device) -> TrainingRun:
    """Find the checkpoint, check the layout against it, create the process groups; every rank calls this.

    Args:
        config: settings of the run, checked, its positions known.
        world: this rank and how many there are.
        device: device of this rank.

    Raises:
        ConfigError: there is no checkpoint, or something is stated of it, or a layout asked for, that is not so.
        CheckpointError: the checkpoint is damaged.
    """
    _log.info("device: %s", where(device, world))
    watchdog.progress("looking for the checkpoint")
    model = check_checkpoint(config)
    config = config.with_template(model.template)
    save = config.checkpoint.save
    older = [Path(save) / "converted"] if save else []  # where earlier versions kept what a run converted
    name, cache = config.model.model_name_or_path, config.model.converted_dir
    start = start_folder(name, cache, config.checkpoint.verify, older)
    hf = hf_folder(start)
    if world.rank == 0:
        for line in changes_from_start(config):
            _log.info("%s", line)
        for line in tiling_not_exported(config.data):
            _log.warning("%s", line)
    tokenizer = Tokenizer.of_model(config.model.tokenizer_path or hf, model.llm.vocab_size)
    added, template = config.model.add_tokens, config.data.template_name
    growth = share_from_first_rank(partial(growth_of_run, added, model, tokenizer, template))
    model, tokenizer = with_growth(growth, model, tokenizer)
    if growth is not None and world.rank == 0:
        _log.info("%s: %s; %s", added, growth.in_words(), pieces_in_words(growth))
    config.parallel.validate(world.world_size, model_sizes(model))
    groups = topology.initialize(config.parallel, config.train.seed)
    policy = config.v2pe.policy(config.train.seed)
    adapters = plan_of(config.adapter, model, layout_of(hf), config.train.seed, config.model.unfreeze_vit_layers)
    budget = MemoryBudget(config, model, world.world_size, _smallest_card(device), adapters)
    rows = raise_on_all_ranks(lambda: rows_of_checkpoints(budget.learning, adapters is not None, hf, growth))
    if adapters is not None and config.adapter.start is not None:
        tokens = RunTokens.of(tokenizer, model, budget.learning, rows)
        starting_tensors(config.adapter.start, adapters, model, tokens)  # what is wrong with it is said at once
    return TrainingRun(config, world, device, groups, start, model, policy, tokenizer, budget, growth, rows)


def _smallest_card(device: Device) -> int | None:
    """Return the bytes of memory of the smallest card of all ranks; None on the CPU."""
    mine = device.memory_bytes()
    if mine is None:
        return None
    smallest = torch.tensor(mine, device=device.torch_device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest.item())


def build_stage(run: TrainingRun) -> InternVLModel:
    """Build this rank's stage of the model, weights not set, the parts frozen that are not to learn.

    Raises:
        ConfigError: parameters and optimizer alone are more than the card has, or no token is new whose rows are to
            learn.
    """
    plan = plan_of_stage(run.budget, run.groups.pp.rank())
    for stage in range(run.budget.stages):
        if (warning := shortage_foreseen(run.budget, stage)) is not None and run.world.rank == 0:
            _log.warning("%s", warning)
    options = _model_options(run, plan)
    image_token = run.tokenizer.img_context_id
    adapt = None if run.adapters is None else partial(put_adapters, run.adapters)
    model = build_model(run.model, run.config.parallel, options, run.policy, image_token, run.groups, adapt)
    learning = run.budget.learning
    freeze(
        model,
        backbone=not learning.backbone,
        llm=not learning.llm,
        projector=not learning.projector,
        unfreeze_vit_layers=learning.unfreeze_vit_layers,
    )
    if learning.tables:
        learn_new_rows(model, *raise_on_all_ranks(lambda: rows_to_learn(hf_folder(run.start), run.growth)))
    return model


def adapter_file(run: TrainingRun) -> dict[str, str]:
    """Return the file of the run's checkpoints that names the base of its adapters; every rank calls this.

    Returns:
        Name of the file -> content; nothing where there are no adapters, or nothing is saved.

    Raises:
        CheckpointError: the base has no checksums.
    """
    plan, config = run.adapters, run.config
    if plan is None or config.checkpoint.save is None:
        return {}
    base = config.model.model_name_or_path
    return {
        ADAPTER_FILE: share_from_first_rank(
            lambda: AdapterPointer.of(plan, config.adapter.pieces, base, run.start, run.table_rows).text()
        )
    }


def _model_options(run: TrainingRun, plan: RecomputePlan | None) -> ModelOptions:
    train, settings = run.config.train, run.config.model
    return ModelOptions(
        params_dtype=run.dtype,
        spec="local" if run.adapters else choose_spec(settings.spec, run.device.kind == "cuda"),
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


def with_counted_steps(run: TrainingRun, state: dict[str, Any] | None, iteration: int) -> TrainingRun:
    """Return the run with the steps that its epochs take, counted on rank 0; every rank calls this.

    Args:
        run: unchanged where its length is given in steps.
        state: state of the loader, where a run goes on.
        iteration: steps done.

    Raises:
        ConfigError: the data are too many to be counted.
        DataError: none of them can be used.
    """
    epochs = run.config.train.epochs
    if epochs is None:
        return run

    def count() -> int:
        watchdog.progress("counting the packs of the run's epochs")
        tell = partial(watchdog.progress, "counting the packs of the run's epochs")
        held = run.config.validation.hold_out
        return steps_left(run.config.data, epochs, run.encoder, run.packs_per_step, state, tell, held)

    left = share_from_first_rank(count)
    if not iteration + left:
        raise DataError(f"train.epochs {epochs:g}: not one sample of the data can be used")
    config = run.config.updated({"train": {"train_steps": iteration + left}}, "train.epochs")
    return replace(run, config=config, budget=replace(run.budget, config=config))


def open_feed(run: TrainingRun, state: dict[str, Any] | None) -> DataFeed:
    """Open the data on the first rank of each copy of the model, and what carries them to the others.

    Tiles go to the first pipeline stage only.

    Args:
        run: run to be trained, its steps counted.
        state: state of the loader, where a run goes on.

    Raises:
        DataError: the data cannot be used, on every rank.
    """
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
            hold_out=run.config.validation.hold_out,
        )

    loader = raise_on_all_ranks(open_loader)
    parallel = run.config.parallel
    copies = topology.model_copies(parallel, run.world.world_size)
    groups = HostGroups.open(copies, parallel.distributed_timeout_minutes)
    tile_ranks = dist.get_process_group_ranks(run.groups.tp_cp) if run.groups.pp.rank() == 0 else None
    limit = run.config.data.max_skipped_samples
    names = share_from_first_rank(lambda: tuple(dataset.name for dataset in _plan_of(loader).mixture.datasets))
    return DataFeed(loader, groups, tile_ranks, topology.coordinates_of(parallel, run.groups), limit, names)


def _plan_of(loader: PackLoader | None) -> Plan:
    """Return the plan of the first rank's loader."""
    assert loader is not None
    return loader.plan


def cutter_of(run: TrainingRun) -> PackCutter:
    """Return what cuts this rank's share out of a pack."""
    return PackCutter(
        coordinates=topology.coordinates_of(run.config.parallel, run.groups),
        first_stage=run.groups.pp.rank() == 0,
        image_token_id=run.tokenizer.img_context_id,
        tokens_per_tile=run.model.tokens_per_tile,
    )


def peak_of_device(run: TrainingRun) -> float | None:
    """Return the peak that MFU is a share of, 10^12 operations a second: stated, or the card's; None on the CPU."""
    if run.config.logging.peak_tflops is not None or run.device.kind != "cuda":
        return run.config.logging.peak_tflops
    return peak_tflops(torch.cuda.get_device_name(run.device.index))


def introduce(run: TrainingRun, feed: DataFeed, start: Start) -> None:
    """Log what is about to be trained, and how, on rank 0, which knows the data."""
    loader = feed.loader
    if run.world.rank or not isinstance(loader, PackLoader):
        return
    packs = packs_of_epoch(run.config.data, run.encoder, hold_out=run.config.validation.hold_out)
    for line in header(run.budget, loader.plan, packs, start):
        _log.info("%s", line)
    for line in changes_from_before(run.config, start.resumed) if start.resumed is not None else ():
        _log.warning("%s", line)
