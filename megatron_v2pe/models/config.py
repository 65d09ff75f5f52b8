"""What an InternVL2 checkpoint is: its `config.json` as typed, checked dataclasses.

The HF `config.json` stays the one description of an architecture; it travels with every Megatron checkpoint.
Nothing here knows about parallelism or tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.stride import parse_stride

ROPE_POS_ID_VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
VOCAB_PADDING_MULTIPLE = 128
"""Vocabulary rows are padded to this multiple whatever the tensor parallel size, so that one shape serves all."""


@dataclass(frozen=True)
class VisionConfig:
    """InternViT: the `vision_config` of the checkpoint."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    image_size: int
    """Side of the grid the stored position embedding was trained for, in pixels."""
    patch_size: int
    num_channels: int
    qkv_bias: bool
    qk_normalization: bool
    norm_type: str
    """`layer_norm` (300M) or `rms_norm` (6B)."""
    norm_eps: float
    drop_path_rate: float
    initializer_factor: float
    """Initial value of the layer scales."""
    initializer_range: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class RopeConfig:
    """Rotary settings of the language model as the checkpoint states them."""

    base: float
    scaling_type: str
    """`none`, `dynamic` (NTK) or `linear`; `v2pe` in a checkpoint is read as `none`."""
    scaling_factor: float


@dataclass(frozen=True)
class LanguageConfig:
    """InternLM2: the `llm_config` of the checkpoint."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_query_groups: int
    ffn_hidden_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    initializer_range: float
    tie_word_embeddings: bool
    rope: RopeConfig

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def padded_vocab_size(self) -> int:
        """Vocabulary rows held in memory: `vocab_size` rounded up to a multiple of 128."""
        return -(-self.vocab_size // VOCAB_PADDING_MULTIPLE) * VOCAB_PADDING_MULTIPLE


@dataclass(frozen=True)
class InternVLConfig:
    """An InternVL2 chat model: tower, projector, language model and how images become tokens."""

    vision: VisionConfig
    llm: LanguageConfig
    downsample_ratio: float
    ps_version: str
    select_layer: int
    tile_size: int
    """Side of a tile in pixels (`force_image_size`, or the tower's `image_size`)."""
    dynamic_image_size: bool
    use_thumbnail: bool
    min_dynamic_patch: int
    max_dynamic_patch: int
    pad2square: bool
    template: str
    rope_pos_id_version: str
    rope_pos_id_stride: int | Fraction | None

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens one tile becomes: `(tile / patch)^2 * ratio^2`."""
        return int((self.tile_size // self.vision.patch_size) ** 2 * self.downsample_ratio**2)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "config.json") -> InternVLConfig:
        """Read the `config.json` of an InternVL2 checkpoint.

        Raises:
            ConfigError: another architecture, a missing field, or a combination that cannot be built; names `source`.
        """
        architecture = (config.get("architectures") or [config.get("model_type")])[0]
        if config.get("model_type") != "internvl_chat":
            raise ConfigError(f"{source}: architecture {architecture!r} is not InternVLChatModel (internvl_chat)")
        vision = _vision_config(_section(config, "vision_config", source), source)
        llm = _language_config(_section(config, "llm_config", source), source)
        tile_size = config.get("force_image_size") or vision.image_size
        version = config.get("rope_pos_id_version") or config["llm_config"].get("rope_pos_id_version") or "default"
        if version not in ROPE_POS_ID_VERSIONS:
            raise ConfigError(f"{source}: rope_pos_id_version {version!r} is none of {', '.join(ROPE_POS_ID_VERSIONS)}")
        if tile_size % vision.patch_size:
            raise ConfigError(f"{source}: tile size {tile_size} is not a multiple of patch size {vision.patch_size}")
        ps_version = config.get("ps_version", "v1")
        if ps_version not in ("v1", "v2"):
            raise ConfigError(f"{source}: ps_version {ps_version!r} is none of v1, v2")
        select_layer = config.get("select_layer", -1)
        if not -vision.num_layers - 1 <= select_layer <= vision.num_layers:
            raise ConfigError(f"{source}: select_layer {select_layer} is outside {vision.num_layers} layers")
        return cls(
            vision=vision,
            llm=llm,
            downsample_ratio=float(config.get("downsample_ratio", 0.5)),
            ps_version=ps_version,
            select_layer=select_layer,
            tile_size=tile_size,
            dynamic_image_size=bool(config.get("dynamic_image_size", False)),
            use_thumbnail=bool(config.get("use_thumbnail", False)),
            min_dynamic_patch=int(config.get("min_dynamic_patch", 1)),
            max_dynamic_patch=int(config.get("max_dynamic_patch", 6)),
            pad2square=bool(config.get("pad2square", False)),
            template=config.get("template") or "internlm2-chat",
            rope_pos_id_version=version,
            rope_pos_id_stride=_stride(config.get("rope_pos_id_stride"), source),
        )

    @classmethod
    def from_folder(cls, folder: str | Path) -> InternVLConfig:
        """Read `config.json` of an HF checkpoint folder."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; an InternVL2 checkpoint folder holds a config.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
        return cls.from_hf(content, str(path))

    def with_vision(self, **changes: Any) -> InternVLConfig:
        """Return a copy whose vision tower differs in the given fields."""
        return replace(self, vision=replace(self.vision, **changes))


def _stride(value: Any, source: str) -> int | Fraction | None:
    try:
        return None if value is None else parse_stride(value)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _section(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping) or not section:
        raise ConfigError(f"{source}: section {name!r} is missing")
    return section


def _need(section: Mapping[str, Any], name: str, where: str) -> Any:
    if section.get(name) is None:
        raise ConfigError(f"{where}: field {name!r} is missing")
    return section[name]


def _vision_config(section: Mapping[str, Any], source: str) -> VisionConfig:
    where = f"{source}: vision_config"
    config = VisionConfig(
        hidden_size=_need(section, "hidden_size", where),
        num_layers=_need(section, "num_hidden_layers", where),
        num_attention_heads=_need(section, "num_attention_heads", where),
        ffn_hidden_size=_need(section, "intermediate_size", where),
        image_size=_need(section, "image_size", where),
        patch_size=_need(section, "patch_size", where),
        num_channels=section.get("num_channels", 3),
        qkv_bias=bool(section.get("qkv_bias", False)),
        qk_normalization=bool(section.get("qk_normalization", True)),
        norm_type=section.get("norm_type", "rms_norm"),
        norm_eps=section.get("layer_norm_eps", 1e-6),
        drop_path_rate=section.get("drop_path_rate", 0.0),
        initializer_factor=section.get("initializer_factor", 0.1),
        initializer_range=section.get("initializer_range", 0.02),
    )
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads"
        )
    if config.norm_type not in ("layer_norm", "rms_norm"):
        raise ConfigError(f"{where}: norm_type {config.norm_type!r} is none of layer_norm, rms_norm")
    if config.qk_normalization or config.norm_type == "rms_norm":
        raise ConfigError(
            f"{where}: qk_normalization={config.qk_normalization}, norm_type={config.norm_type}: the InternViT-6B "
            "tower is not supported yet; supported is InternViT-300M (layer_norm, no q/k normalisation)"
        )
    return config


def _language_config(section: Mapping[str, Any], source: str) -> LanguageConfig:
    where = f"{source}: llm_config"
    architecture = (section.get("architectures") or ["(none)"])[0]
    if architecture != "InternLM2ForCausalLM":
        raise ConfigError(f"{where}: language model {architecture!r} is not supported; supported: InternLM2ForCausalLM")
    if section.get("bias"):
        raise ConfigError(f"{where}: InternLM2 with bias=true is not supported (InternVL2 checkpoints have none)")
    if section.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {section['hidden_act']!r} is not supported (silu is)")
    heads = _need(section, "num_attention_heads", where)
    config = LanguageConfig(
        architecture=architecture,
        hidden_size=_need(section, "hidden_size", where),
        num_layers=_need(section, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_query_groups=section.get("num_key_value_heads") or heads,
        ffn_hidden_size=_need(section, "intermediate_size", where),
        vocab_size=_need(section, "vocab_size", where),
        max_position_embeddings=section.get("max_position_embeddings", 2048),
        norm_eps=section.get("rms_norm_eps", 1e-6),
        initializer_range=section.get("initializer_range", 0.02),
        tie_word_embeddings=bool(section.get("tie_word_embeddings", False)),
        rope=_rope_config(section, where),
    )
    if config.hidden_size % heads or heads % config.num_query_groups:
        raise ConfigError(
            f"{where}: hidden_size {config.hidden_size}, {heads} heads and {config.num_query_groups} key-value heads "
            "do not divide one another"
        )
    return config


def _rope_config(section: Mapping[str, Any], where: str) -> RopeConfig:
    scaling = section.get("rope_scaling") or {}
    kind = scaling.get("type", "none")
    if kind not in ("none", "dynamic", "linear", "v2pe"):
        raise ConfigError(f"{where}: rope_scaling type {kind!r} is none of dynamic, linear, v2pe")
    factor = float(scaling.get("factor", 1.0))
    if kind in ("dynamic", "linear") and factor < 1.0:
        raise ConfigError(f"{where}: rope_scaling factor {factor} is below 1")
    return RopeConfig(
        base=float(section.get("rope_theta", 10000)),
        scaling_type="none" if kind == "v2pe" else kind,
        scaling_factor=1.0 if kind == "v2pe" else factor,
    )
