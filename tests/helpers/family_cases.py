"""A tiny checkpoint of every language model and both towers: `config.json` in the published layout, and its documents.

Sizes are small and unlike one another on purpose: an odd vocabulary, heads that do not share the hidden width, groups
of one, two, three and seven queries, heads whose width is no power of two, a tower that no two ranks share without
padding. Lengths from which a scaling of rotary positions sets in lie between those of the documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCABULARY = 509
"""Rows; the ids of image tokens (`packs.IMG_CONTEXT`) are among them."""
TOWER_300M: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
TOWER_6B: dict[str, Any] = {
    "hidden_size": 40,
    "num_attention_heads": 5,
    "intermediate_size": 75,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
}
LONGROPE: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.3, 1.6, 2.1],
    "long_factor": [1.1, 1.4, 2.5, 4.0, 7.0, 11.0],
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Family:
    """A language model with a tower."""

    architecture: str
    """What `llm_config.architectures` states."""
    model_type: str
    template: str
    llm: dict[str, Any]
    """Fields of `llm_config` beyond the common ones."""
    tower: dict[str, Any]
    select_layer: int = -1
    """Which of the tower's hidden states the projector gets."""

    def config(self) -> dict[str, Any]:
        """Return its `config.json`."""
        tied = self.llm.get("tie_word_embeddings", False)
        return {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": 56,
            "max_dynamic_patch": 6,
            "min_dynamic_patch": 1,
            "pad2square": False,
            "ps_version": "v2",
            "select_layer": self.select_layer,
            "template": self.template,
            "tie_word_embeddings": tied,
            "torch_dtype": "float32",
            "use_thumbnail": True,
            "vision_config": {
                "architectures": ["InternVisionModel"],
                "model_type": "intern_vit_6b",
                "num_hidden_layers": 2,
                "image_size": 56,
                "patch_size": 14,
                "num_channels": 3,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-06,
                "drop_path_rate": 0.0,
                "initializer_range": 0.02,
                "initializer_factor": 0.1,
                **self.tower,
            },
            "llm_config": {
                "architectures": [self.architecture],
                "model_type": self.model_type,
                "hidden_act": "silu",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 256,
                "rms_norm_eps": 1e-06,
                "rope_theta": 1000000.0,
                "initializer_range": 0.02,
                "tie_word_embeddings": False,
                **self.llm,
            },
        }


def _language_model(kind: str, tower: dict[str, Any], select_layer: int = -1, **llm: Any) -> Family:
    architecture, template = {
        "internlm2": ("InternLM2ForCausalLM", "internlm2-chat"),
        "internlm3": ("InternLM3ForCausalLM", "internlm2-chat"),
        "llama": ("LlamaForCausalLM", "Hermes-2"),
        "phi3": ("Phi3ForCausalLM", "phi3-chat"),
        "qwen2": ("Qwen2ForCausalLM", "Hermes-2"),
        "qwen3": ("Qwen3ForCausalLM", "Hermes-2"),
    }[kind]
    return Family(architecture, kind, template, llm, tower, select_layer)


_DYNAMIC = {"max_position_embeddings": 20, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
FAMILIES: dict[str, Family] = {
    "internlm2": _language_model("internlm2", TOWER_300M, bias=False, **_DYNAMIC),
    "internlm2 + 6B tower": _language_model("internlm2", TOWER_6B, bias=False),
    "internlm3": _language_model(
        "internlm3",
        TOWER_300M,
        bias=False,
        qkv_bias=False,
        head_dim=8,
        max_position_embeddings=20,
        rope_scaling={"rope_type": "dynamic", "factor": 6.0},
        rope_theta=50000000.0,
    ),
    "llama 3": _language_model(
        "llama", TOWER_6B, rope_theta=500000.0, rms_norm_eps=1e-5, rope_scaling=LLAMA3, attention_bias=False
    ),
    "yi": _language_model(
        "llama",
        TOWER_300M,
        select_layer=-2,
        hidden_size=56,
        num_attention_heads=14,
        rope_scaling={"type": "linear", "factor": 2.0},
    ),
    "phi3": _language_model(
        "phi3",
        TOWER_300M,
        hidden_size=48,
        num_key_value_heads=4,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_scaling=LONGROPE,
        rms_norm_eps=1e-5,
    ),
    "qwen2": _language_model("qwen2", TOWER_300M, hidden_size=56, num_attention_heads=14, **_DYNAMIC),
    "qwen2 tied": _language_model("qwen2", TOWER_300M, tie_word_embeddings=True),
    "qwen3": _language_model("qwen3", TOWER_300M, head_dim=12, attention_bias=False),
    "qwen3 tied": _language_model(
        "qwen3",
        TOWER_6B,
        head_dim=16,
        num_attention_heads=6,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_scaling=YARN,
    ),
}
"""Every language model in its forms, with one of the towers."""
