"""How the published flags of schedules and layer-wise rates are read; the rows stand in `published_table`."""

from __future__ import annotations

import os
from typing import Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import parse_json

STYLES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
    "inverse_sqrt": "inverse-square-root",
}
"""Published `--lr_scheduler_type` -> `optimizer.lr_decay_style`."""
WSD_STYLES = {"cosine": "cosine", "linear": "linear", "1-sqrt": "minus_sqrt"}
"""`decay_type` of `--lr_scheduler_kwargs` -> `optimizer.wsd_decay_style`."""
LAYER_DECAY = "VIT_LAYER_DECAY_RATE"
"""Environment variable from which the published `--use_custom_trainer True` takes the tower's layer-wise decay."""
_KWARGS = "lr_scheduler_kwargs"


def schedule(value: str) -> dict[str, Any]:
    """Read `--lr_scheduler_type`.

    Raises:
        ConfigError: there is no such schedule here.
    """
    if value not in STYLES:
        shown = printable(value[:100])
        raise ConfigError(f"--lr_scheduler_type {shown} is refused: known here are {', '.join(STYLES)}")
    return {"optimizer.lr_decay_style": STYLES[value]}


def schedule_arguments(value: str) -> dict[str, Any]:
    """Read `--lr_scheduler_kwargs`, a JSON object: the fall of `warmup_stable_decay`.

    Raises:
        ConfigError: it is no such object, or holds an argument that has no setting here.
    """
    if value.strip().lower() in ("", "none", "{}"):
        return {}
    given = parse_json(value, f"--{_KWARGS}", ConfigError)
    known = ("num_decay_steps", "decay_type")
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise ConfigError(
            f"--{_KWARGS} {printable(value[:100])} is refused: expected a JSON object with {' and '.join(known)}, of "
            "warmup_stable_decay; the lowest rate of any schedule is optimizer.min_lr"
        )
    settings: dict[str, Any] = {}
    if "num_decay_steps" in given:
        settings["optimizer.wsd_decay_steps"] = given["num_decay_steps"]
    if "decay_type" in given:
        kind = given["decay_type"]
        if not isinstance(kind, str) or kind not in WSD_STYLES:
            raise ConfigError(f"--{_KWARGS}: decay_type is {printable(kind)[:100]}, expected {', '.join(WSD_STYLES)}")
        settings["optimizer.wsd_decay_style"] = WSD_STYLES[kind]
    return settings


def warmup_steps(value: str) -> dict[str, Any]:
    """Read `--warmup_steps`: 0 leaves the length of warm-up to `--warmup_ratio`, as published."""
    if value.strip() in ("", "0"):
        return {"optimizer.warmup_steps": None}
    return {"optimizer.warmup_steps": value, "optimizer.warmup_ratio": 0.0}


def custom_trainer(is_on: bool) -> dict[str, Any]:
    """Return what `--use_custom_trainer` stands for: no decay of what has one dimension, and layer-wise rates.

    The rate is read from the environment, as the published code does; `QLLAMA_LAYER_DECAY_RATE` and `QLLAMA_LR_SCALE`
    are for parts that these models do not have.

    Raises:
        ConfigError: the variable is set to what is no number above 0 and up to 1.
    """
    if not is_on:
        return {}
    text = os.environ.get(LAYER_DECAY, "1.0")
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1:
        raise ConfigError(
            f"{LAYER_DECAY} is {printable(text[:100])!r} in the environment, expected a number above 0 and up to 1: "
            "--use_custom_trainer True takes the tower's layer-wise decay from there"
        )
    decay = None if rate == 1 else rate
    return {"optimizer.weight_decay_on_all": False, "optimizer.vision_lr_decay": decay}
