"""Names of linears that may have an adapter, alone, in groups and by part of a model: what a user may ask for."""

from __future__ import annotations

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable

TARGETS = {
    "attention": ("linear_qkv", "linear_proj"),
    "mlp": ("linear_fc1", "linear_fc2"),
    "linear_qkv": ("linear_qkv",),
    "linear_proj": ("linear_proj",),
    "linear_fc1": ("linear_fc1",),
    "linear_fc2": ("linear_fc2",),
}
"""Groups of linears, and single ones, by the name a target has -> the attributes they are."""
PARTS = ("language_model", "vision_model", "vision_projection")
"""Parts of a model, one of which may stand before a target: `language_model.attention`."""


def is_target(name: str, target: str) -> bool:
    """Tell whether a linear, by its name in the whole model, is one that a target names.

    Raises:
        ConfigError: the target is unknown; names the nearest.
    """
    part, attributes = parsed_target(target)
    return name.split(".")[-1] in attributes and part in ("", name.split(".")[0])


def parsed_target(target: str) -> tuple[str, tuple[str, ...]]:
    """Return the part of the model, empty for all, and the attributes a target names."""
    part, _, name = target.rpartition(".")
    if name not in TARGETS or part not in ("", *PARTS):
        known = [*TARGETS, *(f"{one}.{group}" for one in PARTS for group in TARGETS)]
        raise ConfigError(f"adapter target {printable(target)[:100]!r} is unknown{did_you_mean(target, known)}")
    return part, TARGETS[name]
