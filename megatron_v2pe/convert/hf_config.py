"""The V2PE fields of an HF `config.json`: read in every form that is about, written so that readers accept them.

The published code reads `rope_pos_id_version` and `rope_pos_id_stride` at the top and copies the version into
`llm_config`. It also overwrites `llm_config.rope_scaling` by `{"type": "v2pe", ...}` in what it saves, which its own
configuration class then refuses to load; that form is understood here, never written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.v2pe.stride import VERSIONS, StridePolicy, parse_stride

PUBLISHED_ROPE_SCALING = {"factor": 2.0, "type": "dynamic"}
"""What InternVL2 checkpoints carry; stands in where `v2pe` has overwritten it. Unused under V2PE."""


@dataclass(frozen=True)
class V2PESettings:
    """Version and stride that belong together."""

    version: str
    stride: int | Fraction | None = None

    def validate(self) -> None:
        """Check the combination; what a checkpoint says is read without, what is written is checked.

        Raises:
            ConfigError: unknown version, `v2pe_fix` without a stride, or a stride with `default`.
        """
        StridePolicy(self.version, self.stride)
        if self.version == "default" and self.stride is not None:
            raise ConfigError(f"rope_pos_id_stride {self.stride} has no meaning with rope_pos_id_version default")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> V2PESettings:
        """Read a `config.json`; the version may stand at the top or in `llm_config` alone."""
        llm = config.get("llm_config") or {}
        version = config.get("rope_pos_id_version") or llm.get("rope_pos_id_version") or "default"
        stride = config.get("rope_pos_id_stride")
        if version == "default":  # a stride left over from another run says nothing
            stride = None
        return cls(version, None if stride is None else parse_stride(stride))

    @classmethod
    def from_training(cls, state: Any, source: str) -> V2PESettings | None:
        """Read the state of a training run; None for one whose settings are empty: a program of one's own wrote it.

        Args:
            state: content of its file.
            source: the file, for the error.

        Raises:
            CheckpointError: it does not say with which positions the run was trained.
        """
        run = Fields(state, source, CheckpointError)
        if run.get("settings", dict[str, Any]) == {}:
            return None
        fields = run.section("settings").section("v2pe")
        version = fields.text("rope_pos_id_version", among=VERSIONS)
        stride = fields.get("rope_pos_id_stride", int | float | str, None)
        try:
            settings = cls(version, None if stride is None else parse_stride(stride))
            settings.validate()
        except ConfigError as error:
            raise CheckpointError(f"{fields.source}: {error}") from error
        return settings

    def overridden(self, version: str | None, stride: str | int | float | Fraction | None) -> V2PESettings:
        """Apply what the user asked for; another version than before drops the stride of before."""
        new = version or self.version
        if stride is not None:
            return V2PESettings(new, parse_stride(stride))
        return V2PESettings(new, self.stride if new == self.version else None)


def has_v2pe_scaling(config: dict[str, Any]) -> bool:
    """Tell whether `llm_config.rope_scaling` is the form that the published code saves and cannot load."""
    scaling = (config.get("llm_config") or {}).get("rope_scaling") or {}
    return scaling.get("type") == "v2pe"


def with_settings(config: dict[str, Any], settings: V2PESettings) -> dict[str, Any]:
    """Return a `config.json` with V2PE fields; everything else, the rope scaling included, stays."""
    result = {**config, "rope_pos_id_version": settings.version}
    result.pop("rope_pos_id_stride", None)
    if settings.stride is not None:
        result["rope_pos_id_stride"] = _plain(settings.stride)
    llm = {**config["llm_config"], "rope_pos_id_version": settings.version}
    if has_v2pe_scaling(config):
        llm["rope_scaling"] = dict(PUBLISHED_ROPE_SCALING)
    return {**result, "llm_config": llm}


def trained_on(state: Any, source: str) -> dict[str, Any]:
    """Return how a run made conversations and tiles of its samples, under the names of `config.json`.

    The published fine-tuning script writes these into what it saves; whoever asks the model follows them.

    Args:
        state: content of the file with a training run's state.
        source: the file, for the error.

    Returns:
        Name -> value of what the state says; empty for one whose settings do not name their data.

    Raises:
        CheckpointError: a value of another type.
    """
    data = Fields(state, source, CheckpointError).get("settings", dict[str, Any], {}).get("data")
    if data is None:
        return {}
    fields = Fields(data, f"{source}: settings: data", CheckpointError)
    found: dict[str, Any] = {
        "template": fields.text("template", None),
        **{name: fields.flag(name, None) for name in ("dynamic_image_size", "use_thumbnail", "pad2square")},
        **{name: fields.whole(name, None, 1, 1000) for name in ("min_dynamic_patch", "max_dynamic_patch")},
    }
    return {name: value for name, value in found.items() if value is not None}


def with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a `config.json` that states another type of the weights, `float32` or `bfloat16`."""
    result = {**config, "torch_dtype": name}
    for section in ("llm_config", "vision_config"):
        result[section] = {**config[section], "torch_dtype": name}
    return result


def to_text(config: dict[str, Any]) -> str:
    """Return a `config.json` as HF writes it."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _plain(stride: int | Fraction) -> int | float | str:
    """Return a stride as JSON has it: a number where that is exact, else text such as `1/3`."""
    value = Fraction(stride)
    if value.denominator == 1:
        return value.numerator
    return float(value) if Fraction(str(float(value))) == value else str(value)
