"""Settings and published flags that were given and change nothing: a run names them in a line each and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from megatron_v2pe.base.config_tree import get_path
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.published_flags import FLAGS, no_number_of_steps
from megatron_v2pe.train.published_table import EPOCHS, shown_value
from megatron_v2pe.train.published_validation import STRATEGIES

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
    (
        ("validation.interval", "validation.max_samples", "validation.best_by", "validation.allow_overlap"),
        lambda config: not config.validation.is_on,
        "there is nothing to validate on, neither validation.meta_path nor validation.share is set",
    ),
    (("logging.wandb_project",), lambda config: not config.logging.wandb, "logging.wandb is not set"),
    (
        ("logging.mlflow_tracking_uri", "logging.mlflow_experiment"),
        lambda config: not config.logging.mlflow,
        "logging.mlflow is not set",
    ),
    (("logging.page_interval",), lambda config: not config.logging.page, "logging.page is not set"),
    (
        ("train.exit_step",),
        lambda config: config.train.epochs is None and (config.train.exit_step or 0) >= config.train.train_steps,
        "the run ends there anyway",
    ),
)
"""Settings, when they change nothing, and why."""


def of_settings(config: ExperimentConfig, recipe: ExperimentConfig | None = None) -> Iterator[str]:
    """Yield a line for each setting that has no effect on this run and is neither its default nor the recipe's.

    Args:
        config: settings of the run.
        recipe: settings of the recipe it was made from, if any.
    """
    plain = ExperimentConfig()
    for names, idle, why in _RULES:
        for name in names:
            if get_path(config, name) not in (get_path(plain, name), get_path(recipe or plain, name)) and idle(config):
                yield f"{name} {get_path(config, name)} has no effect here: {why}"


def of_published_flags(
    values: Mapping[str, str],
    has_saved: bool = False,
    in_epochs: bool = True,
    indexed: bool = False,
    validated: bool = True,
) -> list[str]:
    """Return a line for each published flag that is given and not done as it asks, and one for those without effect.

    Args:
        values: flag name without dashes -> value as text.
        has_saved: the run's folder holds a checkpoint.
        in_epochs: the run's length is given in epochs.
        indexed: the run reads an indexed data set.
        validated: the run has data to validate on.
    """
    lines, idle = list[str](), list[str]()
    for name, value in values.items():
        row = FLAGS[name]
        if name == "overwrite_output_dir" and not has_saved:
            continue  # a new run starts anew either way
        if row.not_done(value):
            lines.append(f"--{name} {shown_value(value)} has no effect here: {row.note}")
        elif row.kind == "ignored" and row.done is None:
            idle.append(f"--{name}")
    for name in STRATEGIES:
        if values.get(name, "no").lower() == "steps" and not validated:
            lines.append(
                f"--{name} steps has no effect here: there is nothing to validate on; set --validation.meta-path to a "
                "data list, or --validation.share to a share of the training data"
            )
    if "num_train_epochs" in values and not in_epochs:
        lines.append(
            f"--num_train_epochs {shown_value(values['num_train_epochs'])} has no effect beside a number of steps"
        )
    elif no_number_of_steps(values) and "num_train_epochs" not in values and in_epochs:
        lines.append(
            f"--max_steps {shown_value(values['max_steps'])}: {EPOCHS} epochs, the published --num_train_epochs"
        )
    if values.get("lr_scheduler_type") == "constant" and "warmup_ratio" in values:
        ratio = shown_value(values["warmup_ratio"])
        lines.append(
            f"--warmup_ratio {ratio} has no effect with --lr_scheduler_type constant, use constant_with_warmup"
        )
    if "max_buffer_size" in values and indexed:
        lines.append(f"--max_buffer_size {shown_value(values['max_buffer_size'])} has no effect on an indexed data set")
    if idle:
        lines.append(f"flags that change nothing here: {', '.join(idle)} (docs/flags.md says why)")
    return lines
