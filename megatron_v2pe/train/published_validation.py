"""Flags of the published trainer that ask for a validation, and what they are here; the published runs use one of them.

They have the names and values of the Hugging Face trainer, older and newer, which the published scripts are built on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.published_table import PublishedFlag, Settings, is_true, shown_value
from megatron_v2pe.train.validation.settings import LOSS

_GROUP = "validation"
STRATEGIES = ("evaluation_strategy", "eval_strategy")
"""The flag that says when is validated, and its newer name."""


def _strategy(value: str) -> Settings:
    if value.lower() in ("no", "steps", "false", "none"):
        return {}
    raise ConfigError(
        f"--evaluation_strategy {shown_value(value)} is refused: known here are no, and steps with --eval_steps"
    )


def _best_by(value: str) -> Settings:
    """Read the name of a metric as the trainer has it: `loss`, `eval_loss`, or `eval_<data set>_loss`."""
    of_set = re.fullmatch(r"(?:eval_)?(?:(.+)_)?loss", value)
    if of_set is None and not value.startswith(LOSS):
        raise ConfigError(
            f"--metric_for_best_model {shown_value(value)} is refused: known here are eval_loss, eval_<data set>_loss"
        )
    if of_set is None:
        return {"validation.best_by": value}
    return {"validation.best_by": f"{LOSS}/{of_set[1]}" if of_set[1] else LOSS}


def _keeps_best(value: str) -> Settings:
    return {"validation.keep_best": int(is_true(value, "load_best_model_at_end"))}


def _row(
    name: str, default: str, key: str, note: str, convert: Callable[[str], Settings] | None = None
) -> PublishedFlag:
    boolean = default in ("True", "False")
    if convert is None and boolean:
        convert = partial(_flag, key, name)
    return PublishedFlag(name, default, _GROUP, "mapped", key, note, convert, boolean=boolean)


def _flag(key: str, name: str, value: str) -> Settings:
    return {key: is_true(value, name)}


VALIDATION_ROWS: tuple[PublishedFlag, ...] = (
    *(
        _row(
            name,
            "no",
            "validation.interval",
            "`steps`, with `--eval_steps` and data in `validation.meta_path` or `validation.share`; `no`: without data",
            _strategy,
        )
        for name in STRATEGIES
    ),
    _row("eval_steps", "-", "validation.interval", "a whole number of steps"),
    _row("eval_on_start", "False", "validation.at_start", ""),
    PublishedFlag(
        "do_eval",
        "False",
        _GROUP,
        "ignored",
        note="a run that has data for it is validated at its end",
        done=("true", "t", "yes", "1"),
        boolean=True,
    ),
    PublishedFlag(
        "per_device_eval_batch_size",
        "8",
        _GROUP,
        "ignored",
        note="a micro-batch is one pack: set validation.max_packed_tokens",
        done=("1",),
    ),
    _row("metric_for_best_model", "-", "validation.best_by", "`eval_loss`, `eval_<data set>_loss`", _best_by),
    _row("greater_is_better", "False", "validation.greater_is_better", ""),
    _row(
        "load_best_model_at_end",
        "False",
        "validation.keep_best",
        "True: 1; the run ends with its last weights, and `RUN/best` names the best ones",
        _keeps_best,
    ),
)
