"""The learning-rate schedules: how a rate goes from its highest value, after warm-up, to its lowest.

All are Megatron-Core's and count from the first step of the run: with n steps done, w of warm-up and T in all, the rate
is `max * n / w` up to step w. After that, with x = (n - w) / (T - w), it is `min + f * (max - min)`:

| name | f |
|---|---|
| `cosine` | (1 + cos(pi x)) / 2 |
| `linear` | 1 - x |
| `constant` | 1 |
| `wsd` (warm-up, stable, decay) | 1, and over the last steps a fall by `wsd_decay_style` |
| `inverse-square-root` | the rate itself is `max * sqrt(w / n)`, never below `min` |

`transformers` computes the same under the names cosine, linear, constant_with_warmup, warmup_stable_decay and
inverse_sqrt, which a test compares step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.optimizers.settings import SCHEDULES, OptimizerSettings, rounded_up

WSD_DECAY_RATIO = 0.1
"""Share of the steps in which `wsd` falls, where no other is given."""


def of_megatron_core(style: str, settings: OptimizerSettings, train_steps: int) -> Mapping[str, Any]:
    """Return the arguments of a schedule that Megatron-Core knows by name and that needs nothing else."""
    return {"lr_decay_style": style}


for _style in ("cosine", "linear", "constant"):
    SCHEDULES.add(_style, partial(of_megatron_core, _style))


@SCHEDULES.register("wsd")
def warmup_stable_decay(settings: OptimizerSettings, train_steps: int) -> Mapping[str, Any]:
    """Return the arguments of a rate that stays at its highest until it falls in the last steps.

    Raises:
        ConfigError: warm-up and fall together are longer than the run.
    """
    ratio = WSD_DECAY_RATIO if settings.wsd_decay_ratio is None else settings.wsd_decay_ratio
    steps, warmup = rounded_up(settings.wsd_decay_steps, ratio, train_steps), settings.steps_of_warmup(train_steps)
    if warmup + steps > train_steps:
        raise ConfigError(
            f"optimizer.lr_decay_style wsd: {warmup} steps of warm-up and {steps} in which the rate falls are more "
            f"than the {train_steps} steps of the run: lower optimizer.warmup_steps or optimizer.wsd_decay_steps"
        )
    return {"lr_decay_style": "WSD", "wsd_decay_steps": steps, "lr_wsd_decay_style": settings.wsd_decay_style}


@SCHEDULES.register("inverse-square-root")
def inverse_square_root(settings: OptimizerSettings, train_steps: int) -> Mapping[str, Any]:
    """Return the arguments of a rate that falls with the root of the steps done.

    Raises:
        ConfigError: there is no warm-up, whose length is the unit of time.
    """
    if settings.steps_of_warmup(train_steps) < 1:
        raise ConfigError(
            "optimizer.lr_decay_style inverse-square-root counts in units of the warm-up, and there is none: set "
            "optimizer.warmup_steps"
        )
    return {"lr_decay_style": "inverse-square-root"}
