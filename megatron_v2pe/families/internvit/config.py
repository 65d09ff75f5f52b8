"""The `vision_config` of InternViT: both published towers, and every mix of norms and biases their class allows."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_fields import (
    ACTIVATION,
    EPS,
    GELU,
    HEAD_DIM,
    LARGEST_SIDE,
    MOST_LAYERS,
    WIDEST,
    Rest,
    check_null,
    read_heads,
    read_norm_eps,
)
from megatron_v2pe.models.config_sections import VisionConfig, vision_tower

ARCHITECTURE = "InternVisionModel"
_NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "patch_size", "image_size")


@vision_tower(ARCHITECTURE, title="InternViT", model_types=("intern_vit_6b",), needed=_NEEDED, is_default=True)
def read_vision_config(section: Fields) -> VisionConfig:
    """Read the section.

    Raises:
        V2PEError: of the section's class: a field is missing, of another type or out of range, or asks for what is not
            computed.
    """
    where, hidden_size = section.source, section.whole("hidden_size", least=1, most=WIDEST)
    patch_size = section.whole("patch_size", least=1, most=1024)
    check_null(section, "hidden_act", "layer_norm_eps", "norm_type")
    section.text("hidden_act", "gelu", GELU)
    for name in ("dropout", "attention_dropout"):
        if rate := section.number(name, 0.0, 0, 1):
            raise section.error(f"{where}: {name}: found {rate}, expected 0: dropout is not computed")
    config = VisionConfig(
        architecture=ARCHITECTURE,
        hidden_size=hidden_size,
        num_layers=section.whole("num_hidden_layers", least=1, most=MOST_LAYERS),
        num_attention_heads=read_heads(section, hidden_size),
        ffn_hidden_size=section.whole("intermediate_size", least=1, most=8 * WIDEST),
        image_size=section.whole("image_size", least=patch_size, most=LARGEST_SIDE),
        patch_size=patch_size,
        num_channels=section.whole("num_channels", 3),
        qkv_bias=section.flag("qkv_bias", False),
        qk_normalization=section.flag("qk_normalization", "qk_normalization" not in section.content),  # null: false
        norm_type=section.text("norm_type", "rms_norm", ("layer_norm", "rms_norm")),
        norm_eps=read_norm_eps(section, "layer_norm_eps"),
        drop_path_rate=section.number("drop_path_rate", 0.0, 0, 0.99),
        initializer_factor=section.number("initializer_factor", 0.1, 0, 1000),
        initializer_range=section.number("initializer_range", 0.02, 0, 100),
    )
    if config.num_channels != 3:
        raise section.error(f"{where}: num_channels: found {config.num_channels}, expected 3: images are read as RGB")
    _check_rest(section, config)
    return config


def _check_rest(section: Fields, config: VisionConfig) -> None:
    """Check the fields beyond those that are read."""
    read = ("qkv_bias", "qk_normalization", "norm_type", "layer_norm_eps", "drop_path_rate", "hidden_act")
    rest = Rest(section, read, "InternViT")
    rest.same(("attention_bias", "bias", "use_bias"), config.qkv_bias)
    rest.same(("use_qk_norm", "qk_norm", "qk_layernorm"), config.qk_normalization)
    rest.same(("norm",), config.norm_type)
    rest.same(ACTIVATION, *GELU)
    rest.same(EPS, config.norm_eps)
    rest.same(HEAD_DIM, config.head_dim)
    rest.same(("position_embedding_type", "pos_embed_type"), "absolute", "learned")
    rest.nothing_else()
