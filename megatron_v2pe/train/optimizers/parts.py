"""The parts of a model that may learn at rates of their own, and which rate and weight decay a parameter has.

A parameter belongs to one part by its name in this rank's stage. The rate of a part is `optimizer.<part>_lr`, or the
run's. Layer-wise decay multiplies it within the tower, adapters in the tower included, as the published
`--use_custom_trainer` does: of n layers, those of the embeddings get `decay ** (n + 1)` and layer i `decay ** (n - i)`,
so that the last layer has `decay` and everything outside of the tower 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.optimizers.settings import OptimizerSettings

PARTS = {
    "vision": "vision_model",
    "projector": "vision_projection",
    "language": "language_model",
    "embedding": "embeddings",
    "adapter": "adapters",
}
"""First word of a part's settings -> its name in logs."""
_ADAPTER = ".adapter."
_EMBEDDINGS = ("language_model.embedding.", "language_model.output_layer.")
_WRAPPED = re.compile(r"^(module\.)+")
_TOWER_LAYER = re.compile(r"^vision_model\.decoder\.layers\.([0-9]+)\.")
_TOWER_EMBEDDINGS = ("vision_model.class_token", "vision_model.position_embedding", "vision_model.patch_embedding")
_SECOND_OF_ADAPTER = ".lora_B"


@dataclass(frozen=True)
class Rate:
    """How a parameter is changed in a step, before the schedule."""

    max_lr: float
    """Its highest learning rate."""
    min_lr: float
    weight_decay: float


def plain_name(name: str) -> str:
    """Return the name of a parameter in its stage, without those of the wrappers around it."""
    return _WRAPPED.sub("", name)


def part_of(name: str) -> str:
    """Return the part a parameter belongs to, a key of `PARTS`.

    Args:
        name: of the parameter in this rank's stage, wrapped or not.
    """
    name = plain_name(name)
    if _ADAPTER in name:
        return "adapter"
    if name.startswith(_EMBEDDINGS):
        return "embedding"
    return {"vision_model": "vision", "vision_projection": "projector"}.get(name.split(".")[0], "language")


def layer_factor(name: str, decay: float | None, tower_layers: int) -> float:
    """Return what layer-wise decay multiplies a parameter's learning rate by.

    Args:
        name: of the parameter in this rank's stage, wrapped or not.
        decay: `optimizer.vision_lr_decay`.
        tower_layers: layers of the whole tower.
    """
    name = plain_name(name)
    if decay is None or not name.startswith("vision_model."):
        return 1.0
    if name.startswith(_TOWER_EMBEDDINGS):
        return decay ** (tower_layers + 1)
    layer = _TOWER_LAYER.match(name)
    return 1.0 if layer is None else decay ** (tower_layers - int(layer[1]))


def rate_of(settings: OptimizerSettings, name: str, dimensions: int, tower_layers: int) -> Rate:
    """Return the learning rates and the weight decay of a parameter.

    Args:
        settings: of the run's optimizer.
        name: of the parameter in this rank's stage, wrapped or not.
        dimensions: of the parameter.
        tower_layers: layers of the whole tower.
    """
    part = part_of(name)
    highest = part_rate(settings, part) * layer_factor(name, settings.vision_lr_decay, tower_layers)
    if settings.adapter_b_lr_ratio is not None and part == "adapter" and _SECOND_OF_ADAPTER in name:
        highest *= settings.adapter_b_lr_ratio
    lowest = settings.min_lr if highest == settings.lr else settings.min_lr * (highest / settings.lr)
    decay = getattr(settings, f"{part}_weight_decay")
    decay = settings.weight_decay if decay is None else decay
    if not settings.weight_decay_on_all and (dimensions <= 1 or name.endswith(".bias")):
        decay = 0.0
    return Rate(highest, lowest, decay)


def part_rate(settings: OptimizerSettings, part: str) -> float:
    """Return the highest learning rate of a part, before layer-wise decay."""
    stated = getattr(settings, f"{part}_lr")
    return settings.lr if stated is None else stated


def are_stated(settings: OptimizerSettings) -> bool:
    """Return whether some part, or a layer of the tower, has a rate or a weight decay of its own."""
    return bool(_stated(settings))


def _stated(settings: OptimizerSettings) -> Mapping[str, str]:
    """Return the settings that are about one part -> the part."""
    names = {f"{part}_{what}": part for part in PARTS for what in ("lr", "weight_decay")}
    names |= {"vision_lr_decay": "vision", "adapter_b_lr_ratio": "adapter"}
    return {name: part for name, part in names.items() if getattr(settings, name) is not None}


def check_parts(settings: OptimizerSettings, learning: Iterable[str]) -> None:
    """Refuse a rate or a decay of a part of which nothing learns.

    Args:
        settings: of the run's optimizer.
        learning: parts of which some parameter learns, on any rank.

    Raises:
        ConfigError: names the setting.
    """
    learning = set(learning)
    for name, part in _stated(settings).items():
        if part not in learning and not (name == "vision_lr_decay" and "adapter" in learning):
            raise ConfigError(
                f"optimizer.{name} is {getattr(settings, name)}, but nothing of {PARTS[part]} learns in this run: "
                "unset it, or have that part learn (model.freeze_*, adapters)"
            )


def shown_rates(settings: OptimizerSettings, tower_layers: int, frozen: Collection[str] = ()) -> dict[str, float]:
    """Return the highest learning rates that a run logs by part, where they are not all alike.

    With layer-wise decay the tower has two, of its last layer and of its embeddings.

    Args:
        settings: of the run's optimizer.
        tower_layers: layers of the whole tower.
        frozen: parts of which nothing learns, keys of `PARTS`.
    """
    if not any(name.endswith(("_lr", "_lr_decay", "_lr_ratio")) for name in _stated(settings)):
        return {}
    learning = {part: name for part, name in PARTS.items() if part != "adapter" and part not in frozen}
    rates = {name: part_rate(settings, part) for part, name in learning.items()}
    if settings.adapter_lr is not None:
        rates[PARTS["adapter"]] = settings.adapter_lr
    if settings.vision_lr_decay is not None and "vision_model" in rates:
        tower = rates.pop("vision_model")
        rates["vision_model"] = tower * settings.vision_lr_decay
        rates["vision_model_embeddings"] = tower * settings.vision_lr_decay ** (tower_layers + 1)
    return rates
