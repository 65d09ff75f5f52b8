"""A run whose adapters begin with those of a PEFT folder or of another run, in place of drawn ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_v2pe.checkpoint.hf.open_source import check_is_base, open_megatron
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.open_adapter import open_adapter
from megatron_v2pe.checkpoint.low_rank.piece_rows import piece_name, piece_table
from megatron_v2pe.checkpoint.parts import held_parts
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora_plan import LowRankPlan

SETTING = "adapter.start"


def starting_tensors(start: str, plan: LowRankPlan, model: InternVLConfig) -> dict[str, Tensor]:
    """Return the tensors that a run's adapters begin with, by checkpoint key.

    A factor may have a smaller rank than the run's: it fills the first rows of `lora_A` and columns of `lora_B`, the
    others begin as they are drawn. Another scaling is multiplied into `lora_B`.

    Args:
        start: the setting: a PEFT folder, or a run that trained an adapter.
        plan: adapters of this run.
        model: that is trained.

    Raises:
        ConfigError: there is no adapter, or this run has no place for a part of it; names it and the setting.
        CheckpointError: it is damaged, or of another model.
    """
    adapter = open_adapter(Path(start), model, SETTING)
    table = mapping_table(model)
    keys = {row.key for row in adapter.table.tensors if row.name in adapter.whole}
    named = adapter.named(piece_table(plan.pieces, table, keys, adapter.source))
    reached = {row.key for row in named.table.tensors if row.name in named.changes}
    changed = {row.key for row in adapter.table.tensors if row.name in adapter.changes}
    if left := sorted(changed - reached):
        raise ConfigError(
            f"{SETTING} {adapter.source}: changes {left[0]} and {len(left) - 1} other linears that are no targets of "
            "this run: name them in adapter.targets"
        )
    found = dict(named.whole)
    for linear, pieces in plan.pieces.items():
        settings = plan.settings[linear.split(".")[0]]
        for piece in pieces:
            change = named.changes.get(piece_name(linear, piece.name))
            if change is None:
                continue
            if change.rank > settings.rank:
                raise ConfigError(
                    f"{SETTING} {adapter.source}: its factors of {linear} ({piece.name}) have rank {change.rank}, this "
                    f"run's {settings.rank}: set adapter.rank {change.rank}, or more"
                )
            key = f"{linear}.adapter.{piece.name}"
            found[f"{key}.lora_A"] = change.down
            found[f"{key}.lora_B"] = change.up * (change.scaling / settings.scaling)
    return found


def begin_with(
    start: str, stage: nn.Module, plan: LowRankPlan, model: InternVLConfig, base: Path, verify: bool = True
) -> None:
    """Put the tensors that a run's adapters begin with into a stage that has its base's weights; every rank calls this.

    Args:
        start: see `starting_tensors`.
        stage: of this rank, with the run's adapters on it, parts that do not learn frozen.
        plan: adapters of this run.
        model: that is trained.
        base: Megatron checkpoint of the base's weights.
        verify: compare checksums.

    Raises:
        ConfigError: see `starting_tensors`; or a part that the adapter holds in full does not learn in this run.
        CheckpointError: see `starting_tensors`; or the adapter is of another base, with both fingerprints.
    """
    tensors = starting_tensors(start, plan, model)
    check_is_base(open_adapter(Path(start), model, SETTING), open_megatron(base, verify))
    _put(tensors, stage, start)


def _put(tensors: Mapping[str, Tensor], stage: nn.Module, start: str) -> None:
    parameters = dict(stage.named_parameters())
    for name, parts in held_parts(stage, adapters=True):
        for part in parts:
            values = tensors.get(part.key)
            if values is None:
                continue
            if not parameters[name].requires_grad:
                raise ConfigError(
                    f"{SETTING} {start}: holds {part.key}, trained in full, which does not learn in this run: let its "
                    "part learn (model.freeze_mlp false for the projector), or merge the adapter into its base first"
                )
            view = part.view
            if part.key.endswith(".lora_A"):
                view = view[: values.shape[0]]
            elif part.key.endswith(".lora_B"):
                view = view[:, : values.shape[1]]
            with torch.no_grad():
                replace(part, view=view).put(values.to(view.dtype))
