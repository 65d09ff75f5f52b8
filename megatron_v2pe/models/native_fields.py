"""The fields of the native `config.json`: what transformers' classes take for those left out, and the names of all.

The defaults are those of `configuration_internvl.py`, `configuration_qwen2.py`, `configuration_qwen3.py`,
`configuration_llama.py` and `configuration_phi3.py` of transformers 5.23, and are the same in 4.52.
"""

from __future__ import annotations

from typing import Any

NATIVE_TEMPLATE = "internvl2_5"
"""Conversation template of the models that were published in native form: InternVL2.5, 3 and 3.5."""
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
_QWEN = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "phi3": {
        **_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
}  # fmt: skip
"""What transformers' classes take for fields of `text_config` that are left out, by `model_type`."""
TEXT_DEFAULT_KIND = "qwen2"
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "attention_bias": False,
    "use_qk_norm": False, "intermediate_size": 4096, "hidden_act": "gelu", "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6, "image_size": 448, "patch_size": 14, "num_channels": 3, "layer_scale_init_value": 0.1,
    "hidden_dropout_prob": 0.0, "attention_dropout": 0.0, "initializer_range": 0.02,
}  # fmt: skip
"""What `InternVLVisionConfig` takes for fields that are left out, of those that the original form has too."""
VISION_FIXED: dict[str, Any] = {
    "projection_dropout": 0.0, "use_mask_token": False, "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
}  # fmt: skip
"""Fields of `InternVLVisionConfig` that the original form has not, with the one value that is computed.

`use_mean_pooling` false puts a norm behind the last layer, true none."""
VISION_NAMES = {
    "attention_bias": "qkv_bias", "use_qk_norm": "qk_normalization", "layer_scale_init_value": "initializer_factor",
    "hidden_dropout_prob": "dropout",
}  # fmt: skip
"""Native name -> original name of fields of the tower whose names differ."""
VISION_INITIAL = ("layer_scale_init_value",)
"""Those of them that say what a model starts from, and nothing to one that has weights."""
ORIGINAL_VISION_DEFAULTS = {"qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False}
"""What the published class takes where its defaults are not those of the native one."""
TOP_DEFAULTS: dict[str, Any] = {
    "downsample_ratio": 0.5, "dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1,
    "max_dynamic_patch": 12, "template": NATIVE_TEMPLATE,
}  # fmt: skip
"""What a native model is used with where it does not say: `GotOcr2ImageProcessor` cuts up to 12 tiles and adds a
thumbnail, which `InternVLProcessor` asks of it."""
TOP_FIXED = {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"}
TEXT_FIELDS = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size head_dim "
    "max_position_embeddings original_max_position_embeddings rms_norm_eps initializer_range hidden_act rope_theta "
    "rope_scaling rope_parameters partial_rotary_factor bos_token_id eos_token_id pad_token_id use_cache "
    "attention_dropout attention_bias mlp_bias resid_pdrop embd_pdrop pretraining_tp sliding_window "
    "use_sliding_window max_window_layers layer_types torch_dtype dtype tie_word_embeddings".split()
)
"""Fields of transformers' classes; others of an `llm_config` stand in `v2pe_original`."""
TOP_FIELDS = frozenset(
    "downsample_ratio image_token_id torch_dtype dtype transformers_version template dynamic_image_size "
    "dynamic_max_patch use_thumbnail min_dynamic_patch max_dynamic_patch pad2square min_num_frame max_num_frame "
    "normalize_type rope_pos_id_version rope_pos_id_stride force_image_size".split()
)
"""Fields of an original `config.json` that stand at the top of the native one: those of both, and those that say how a
model was trained."""
