"""What the section `adapter` asks for of one model: linears and pieces by name, and what therefore does not learn."""

from __future__ import annotations

from megatron_v2pe.checkpoint.hf.adapter_rows import PieceRow, chosen, linears_of
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import Learning
from megatron_v2pe.models.lora_plan import LowRank, LowRankPlan
from megatron_v2pe.train.adapter_settings import PART_RANKS, AdapterSettings
from megatron_v2pe.train.config import ModelConfig


def plan_of(
    settings: AdapterSettings, model: InternVLConfig, layout: str, seed: int, unfreeze_vit_layers: int = 0
) -> LowRankPlan | None:
    """Return the adapters of a run, None where it has none.

    Args:
        settings: of the run.
        model: that is trained.
        layout: of the checkpoint's Hugging Face tensors, `original` or `native`.
        seed: of the run.
        unfreeze_vit_layers: `model.unfreeze_vit_layers`.

    Raises:
        ConfigError: a target is unknown or matches nothing; a rank is larger than a linear is wide, or is that of a
            part without a target; layers of the tower would learn in full beside their adapters, which no form of an
            adapter can hold.
    """
    if not settings.is_on:
        return None
    found = chosen(linears_of(model, layout, settings.pieces), settings.chosen_targets())
    for linear, rows in found.items():
        for row in rows:
            _check_rank(settings, linear, row)
    parts = {
        part: LowRank(settings.rank_of(part), settings.alpha_of(part), settings.dropout, settings.use_rslora)
        for part in PART_RANKS
    }
    plan = LowRankPlan({linear: tuple(row.piece for row in rows) for linear, rows in found.items()}, parts, seed)
    for part, name in PART_RANKS.items():
        if getattr(settings, name) is not None and part not in plan.parts:
            raise ConfigError(
                f"adapter.{name} is {getattr(settings, name)}, but adapter.targets names no linear of {part}: leave "
                f"one of the two out, or add {part}.mlp"
            )
    if unfreeze_vit_layers and "vision_model" in plan.parts:
        raise ConfigError(
            f"model.unfreeze_vit_layers {unfreeze_vit_layers} would train weights of the tower that adapters of "
            "adapter.targets work on: choose one of the two, or name targets of the language model alone "
            "(language_model.attention)"
        )
    return plan


def _check_rank(settings: AdapterSettings, linear: str, row: PieceRow) -> None:
    part = linear.split(".")[0]
    rank, width = settings.rank_of(part), min(row.shape)
    if rank > width:
        own = f"adapter.{PART_RANKS[part]}" if getattr(settings, PART_RANKS[part]) else "adapter.rank"
        which = linear if row.piece.name == "whole" else f"{linear} ({row.piece.name})"
        raise ConfigError(
            f"{own} {rank} is larger than {which}, which is {row.shape[0]} x {row.shape[1]}: choose at most {width}, "
            "or name other adapter.targets"
        )


def learning_of(settings: ModelConfig, plan: LowRankPlan | None) -> Learning:
    """Return which parts of the model learn as a whole, and which through adapters."""
    parts = () if plan is None else plan.parts
    llm = not settings.freeze_llm and "language_model" not in parts
    return Learning(
        backbone=not settings.freeze_backbone and "vision_model" not in parts,
        llm=llm,
        projector=not settings.freeze_mlp and "vision_projection" not in parts,
        unfreeze_vit_layers=settings.unfreeze_vit_layers,
        tables=settings.train_new_tokens and not llm,
        adapters=plan,
    )
