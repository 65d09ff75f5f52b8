"""`config.json` of a small InternVL: the fields of its published family, with the sizes an example chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_v2pe.workshop.synthetic.small_families import SMALL_FAMILIES, SmallFamily


def small_internvl2(
    tile: int,
    patch: int,
    vision: Mapping[str, Any],
    language: Mapping[str, Any],
    family: SmallFamily = SMALL_FAMILIES["internlm2"],
    **others: Any,
) -> dict[str, Any]:
    """Return the configuration.

    Args:
        tile: side of a tile in pixels.
        patch: side of a patch.
        vision: sizes of the tower, and what differs in its fields.
        language: sizes of the language model, its `vocab_size`, positions and rotary settings.
        family: whose fields the language model and the tower have beside them.
        others: what differs in the model's own fields.
    """
    tower = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": tile,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    decoder = {
        "architectures": family.llm["architectures"],
        "model_type": family.llm["model_type"],
        "hidden_act": "silu",
        **{name: value for name, value in family.llm.items() if name == "bias"},
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "vision_config": {**tower, **family.vision, **vision},
        "llm_config": {**decoder, **family.llm, **language},
        "hidden_size": language["hidden_size"],
        "force_image_size": tile,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "template": family.template,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": None,
        **others,
    }
