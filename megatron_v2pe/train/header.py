"""The lines that a run prints before its first step: model, data, layout, length, and where it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.data.loader import Plan
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.models.memory import parameters, stored_parameters
from megatron_v2pe.parallel.attention.context_parallel import exchange_named
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.memory import MemoryBudget, in_words, packs_per_step


@dataclass(frozen=True)
class Start:
    """Where a run begins: its weights, and the training checkpoint that it goes on from."""

    weights: Path
    """Megatron checkpoint folder the model comes from."""
    resumed: Path | None = None
    """Training checkpoint it goes on from."""
    iteration: int = 0
    """Steps done."""
    logs: Path | None = None
    """Folder of log and metrics."""


def header(budget: MemoryBudget, plan: Plan, packs: int | None, start: Start) -> Iterator[str]:
    """Yield the lines a run begins with.

    Args:
        budget: settings, model and ranks of the run, its steps counted.
        plan: plan of its packs.
        packs: packs of an epoch; None: they were not counted.
        start: where it begins.
    """
    config = budget.config
    yield f"model: {config.model.model_name_or_path}, {parameter_words(budget.model, budget.learning)}"
    yield f"positions: {positions(config)}; template {config.data.template_name}"
    yield _data(config, budget.model, plan, packs)
    yield f"layout: {some(budget.world_size, 'rank')}, {layout_words(config.parallel, budget.world_size)}"
    yield f"numbers: {config.train.precision}; {_learning_rate(config)}"
    for stage in range(budget.stages):
        yield in_words(budget, stage)
    yield length(config, packs_per_step(budget), packs, start.iteration)
    yield _saved(config, start.logs)
    if start.resumed is not None:
        yield f"goes on from {start.resumed}, step {start.iteration}"
    else:
        yield f"starts with the weights of {start.weights}"


def parameter_words(model: InternVLConfig, learning: Learning) -> str:
    """Return how many parameters a model has, how many of them learn, and which parts do not."""
    found = parameters(model, ParallelConfig(), 0, learning)
    total = stored_parameters(model)
    learn = found.learning(learning) - (found.total - total if learning.llm else found.tables * learning.tables)
    frozen = [
        name
        for name, learns in (
            (f"language model{' but for rows of new tokens' * learning.tables}", learning.llm),
            ("projector", learning.projector),
            ("vision tower", found.tower_learning == found.tower),
        )
        if not learns
    ]
    part = " in part" if 0 < found.tower_learning < found.tower else ""
    if learning.adapters is not None:
        rank = "/".join(str(learning.adapters.settings[one].rank) for one in learning.adapters.parts)
        linears = len(learning.adapters.pieces)
        adapters = f"{found.factors:,} in adapters of rank {rank} on {linears} linears"
        return f"{total:,} parameters, {learn:,} trained, and {adapters}; frozen: {', '.join(frozen)}{part}"
    if not frozen:
        return f"{total:,} parameters, all trained"
    return f"{total:,} parameters, {learn:,} trained; frozen: {', '.join(frozen)}{part}"


def positions(config: ExperimentConfig) -> str:
    """Return the positions of image tokens in words."""
    settings = config.v2pe
    if settings.rope_pos_id_version == "v2pe_rnd":
        return f"v2pe_rnd, a stride of {', '.join(settings.strides)} drawn per image"
    if settings.rope_pos_id_version == "v2pe_fix":
        return f"v2pe_fix, stride {settings.rope_pos_id_stride}"
    if settings.rope_pos_id_version == "recorded":
        return "as the indexed data set recorded them"
    return "default, a position per token"


def layout_words(layout: ParallelConfig, world: int) -> str:
    """Return how a world is divided, `4 data parallel x 8 context parallel (ring)`."""
    kind = exchange_named(layout.cp_comm_type).words
    degrees = [
        ("data parallel", layout.data_parallel_size(world)),
        (f"context parallel ({kind})", layout.context_parallel_size),
        ("tensor parallel", layout.tensor_model_parallel_size),
        ("pipeline stages", layout.pipeline_model_parallel_size),
    ]
    return " x ".join(f"{count} {name}" for name, count in degrees if count > 1 or name == "data parallel")


def _data(config: ExperimentConfig, model: InternVLConfig, plan: Plan, packs: int | None) -> str:
    data = config.data
    sets = some(len(plan.mixture.datasets), "set")
    epoch = f"{some(plan.mixture.epoch_length, 'sample')} an epoch"
    epoch += "" if packs is None else f" in {some(packs, 'pack')}"
    tiles = "one" if not data.dynamic_image_size else f"{data.min_dynamic_patch} to {data.max_dynamic_patch}"
    return (
        f"data: {data.indexed_path or data.meta_path}, {sets}, {epoch}; {tiles} tiles an image, of {model.tile_size} "
        f"pixels and {model.tokens_per_tile} tokens"
    )


def _learning_rate(config: ExperimentConfig) -> str:
    settings = config.optimizer
    steps = settings.steps_of_warmup(config.train.train_steps)
    return f"learning rate {settings.lr:g}, {some(steps, 'step')} of warm-up, then {settings.lr_decay_style}"


def length(config: ExperimentConfig, per_step: int, packs: int | None, done: int = 0) -> str:
    """Return how long a run is: steps, epochs where packs of an epoch are known, packs and tokens of a step."""
    steps, epochs = config.train.train_steps, ""
    if config.train.epochs is not None:
        epochs = f" ({config.train.epochs:g} epochs)"
    elif packs:
        about = "" if config.data.indexed_path else "about "  # packs of a list reach over an epoch's end
        epochs = f" ({about}{steps / -(-packs // per_step):.2f} epochs)"
    begun = f", {done:,} done" if done else ""
    tokens, tiles = per_step * config.data.max_packed_tokens, per_step * config.data.num_images_expected
    each = some(per_step, "pack")
    whole = f"{some(steps, 'step')}{epochs}{begun}"
    return f"length: {whole}; a step is {each}, at most {tokens:,} tokens and {tiles:,} tiles"


def _saved(config: ExperimentConfig, logs: Path | None) -> str:
    settings = config.checkpoint
    kept = "" if logs is None else f"; log and metrics in {logs}"
    if settings.save is None:
        return f"saved: nothing, checkpoint.save is not set{kept}"
    often = "at the end" if settings.save_interval is None else f"every {settings.save_interval:,} steps and at the end"
    newest = "all are kept" if settings.keep_latest is None else f"the newest {settings.keep_latest} are kept"
    return f"saved: in {settings.save} {often}, {newest}{kept}"


def some(count: int, what: str) -> str:
    """Return a number of things, `1 pack`, `1,200 packs`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
