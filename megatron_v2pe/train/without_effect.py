"""Settings that were given and change nothing, because another setting decides: a run says so and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from megatron_v2pe.train.config import ExperimentConfig

_Rule = tuple[tuple[str, ...], Callable[[ExperimentConfig], bool], str]
_RULES: tuple[_Rule, ...] = (
    (
        ("data.packing_window", "data.pack_padding_multiple", "data.max_padding_share", "data.balance_attention"),
        lambda config: not config.data.indexed_path,
        "it is for an indexed data set, and the run reads a data list",
    ),
    (
        ("v2pe.strides",),
        lambda config: config.v2pe.rope_pos_id_version != "v2pe_rnd",
        "v2pe_rnd alone draws from it",
    ),
    (
        ("optimizer.min_lr",),
        lambda config: config.optimizer.lr_decay_style == "constant",
        "optimizer.lr_decay_style is constant",
    ),
    (("train.memory_share",), lambda config: config.train.recompute != "auto", "train.recompute auto alone uses it"),
    (
        ("checkpoint.save_interval", "checkpoint.keep_latest"),
        lambda config: config.checkpoint.save is None,
        "nothing is saved, checkpoint.save is not set",
    ),
    (("logging.wandb_project",), lambda config: not config.logging.wandb, "logging.wandb is not set"),
    (
        ("train.exit_step",),
        lambda config: config.train.epochs is None and (config.train.exit_step or 0) >= config.train.train_steps,
        "the run ends there anyway",
    ),
)
"""Settings, when they change nothing, and why."""


def without_effect(config: ExperimentConfig, recipe: ExperimentConfig | None = None) -> Iterator[str]:
    """Yield a line for each setting that has no effect on this run and is neither its default nor the recipe's.

    Args:
        config: of the run.
        recipe: that it was made from, if any.
    """
    plain = ExperimentConfig()
    for names, idle, why in _RULES:
        for name in names:
            if _of(config, name) not in (_of(plain, name), _of(recipe or plain, name)) and idle(config):
                yield f"{name} {_of(config, name)} has no effect here: {why}"


def _of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
