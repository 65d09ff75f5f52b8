"""A published model by its name: the `config.json` in the original layout, made of the table of shapes.

A preset stands in where there is no checkpoint: a plan, an estimate of memory, a model of random weights, a test. It
never overrules what a checkpoint says of itself.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config_sections import LANGUAGE_MODELS
from megatron_v2pe.models.preset_table import (
    IMAGE_TOKENS,
    LANGUAGE_SHAPES,
    PRESETS,
    TOWER_SHAPES,
    LanguageShape,
    Preset,
    TowerShape,
)

TILE, PATCH = 448, 14
"""Sides of a tile and of a patch in pixels, the same in every generation."""
_OWNER = re.compile(r"^opengvlab/", re.IGNORECASE)


def preset_named(name: str) -> str:
    """Return the name of a preset as the table has it, from one in other letters or with its owner (`OpenGVLab/`).

    Raises:
        ConfigError: no preset has this name; says which come nearest.
    """
    wanted = _plain(name)
    for known, preset in PRESETS.items():
        if wanted in (_plain(known), _plain(preset.hub or known)):
            return known
    raise ConfigError(f"preset {printable(name)[:80]!r} is not known{did_you_mean(name, PRESETS)}")


def _plain(name: str) -> str:
    """Return a name without its owner, its letters' case and its marks; InternVL3.5 is written in three ways."""
    return re.sub(r"[^a-z0-9]", "", _OWNER.sub("", name).lower())


def preset_config(name: str) -> dict[str, Any]:
    """Return the `config.json` of a published checkpoint, in the original layout.

    Args:
        name: of a preset, as `preset_named` takes it.

    Raises:
        ConfigError: no preset has this name.
    """
    preset = PRESETS[preset_named(name)]
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE,
        "llm_config": _language(LANGUAGE_SHAPES[preset.language], preset),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": preset.template,
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": _tower(TOWER_SHAPES[preset.tower]),
    }


def image_token(name: str) -> int:
    """Return the id of `<IMG_CONTEXT>` in a preset's vocabulary, which the native layout states in its `config.json`.

    Raises:
        ConfigError: no preset has this name, or the id is not known without the checkpoint's tokenizer.
    """
    known = preset_named(name)
    if (found := IMAGE_TOKENS.get(PRESETS[known].vocab_size)) is None:
        raise ConfigError(f"preset {known}: the id of <IMG_CONTEXT> is not known; the checkpoint's tokenizer says it")
    return found


def _language(shape: LanguageShape, preset: Preset) -> dict[str, Any]:
    begin, end, padding = shape.tokens
    return {
        "architectures": [shape.architecture],
        "bos_token_id": begin,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "model_type": LANGUAGE_MODELS[shape.architecture].model_types[0],
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.groups,
        "pad_token_id": padding,
        "rms_norm_eps": shape.eps,
        "rope_scaling": copy.deepcopy(preset.rope_scaling),
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": preset.vocab_size,
        **shape.settings,
    }


def _tower(shape: TowerShape) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_size": shape.hidden_size,
        "image_size": TILE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "layer_norm_eps": 1e-06,
        "model_type": "intern_vit_6b",
        "num_attention_heads": shape.heads,
        "num_channels": 3,
        "num_hidden_layers": shape.layers,
        "patch_size": PATCH,
        "torch_dtype": "bfloat16",
        **shape.settings,
    }


def reduced(config: dict[str, Any], layers: int = 4) -> dict[str, Any]:
    """Return a `config.json` of small widths that keeps what decides the names and the order of tensors.

    Kept are heads per group, the number of groups (at most four), biases, norms, ties, the scaling of rotary positions,
    and whether heads are as wide as `hidden_size` over their number. The 6B tower keeps its 25 heads.

    Args:
        config: the `config.json` of a preset.
        layers: of the decoder; the tower has two.
    """
    small = copy.deepcopy(config)
    llm, vision = small["llm_config"], small["vision_config"]
    groups = min(llm["num_key_value_heads"], 4)
    heads = llm["num_attention_heads"] // llm["num_key_value_heads"] * groups
    width, own = 8, "head_dim" in llm
    if own:
        ratio = llm["head_dim"] * llm["num_attention_heads"] / llm["hidden_size"]
        llm["head_dim"] = width
        llm["hidden_size"] = max(8, round(heads * width / ratio / 8) * 8)
    else:
        llm["hidden_size"] = heads * width
    llm |= {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "num_hidden_layers": layers,
        "intermediate_size": 48,
        "vocab_size": 301,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    scaling = llm["rope_scaling"] or {}
    for name in ("long_factor", "short_factor"):
        if name in scaling:
            scaling[name] = scaling[name][: width // 2]
    tower_heads = vision["num_attention_heads"] if vision["qk_normalization"] else 4
    vision |= {
        "hidden_size": 4 * tower_heads,
        "num_attention_heads": tower_heads,
        "intermediate_size": 16 * tower_heads,
        "num_hidden_layers": 2,
        "image_size": 56,
    }
    small["force_image_size"] = 56
    return small
