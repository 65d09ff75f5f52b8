"""What small models of each language model's and tower's family have, as examples and tests make them by name.

A small model has the fields of its published family and sizes of its own: names of tensors, biases, norms, template and
kind of tokenizer are the family's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable


@dataclass(frozen=True)
class SmallFamily:
    """What a family's `config.json` has beside sizes, and how its text is written."""

    title: str
    """The family in messages."""
    llm: dict[str, Any]
    """Fields of `llm_config`."""
    template: str = "internvl2_5"
    rope: dict[str, Any] | None = field(default_factory=lambda: {"type": "dynamic", "factor": 2.0})
    """Scaling of rotary positions, as a small model with heads of 32 states it."""
    tokenizer: str = "internlm2"
    """Kind of its tokenizer: `internlm2` and `llama2` (SentencePiece), `phi3`, or byte-level BPE: `qwen2`, `qwen3`,
    `llama3`."""
    vision: dict[str, Any] = field(default_factory=dict)
    """Fields of `vision_config` in which its tower differs from InternViT-300M."""


def _llm(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **fields}


_INTERNLM2 = _llm("InternLM2ForCausalLM", "internlm2", bias=False)
SMALL_FAMILIES = {
    "internlm2": SmallFamily("InternVL2 with InternLM2", _INTERNLM2, template="internlm2-chat"),
    "qwen2": SmallFamily(
        "InternVL3 with Qwen2.5",
        _llm("Qwen2ForCausalLM", "qwen2", rms_norm_eps=1e-6, use_sliding_window=False),
        tokenizer="qwen2",
    ),
    "qwen3": SmallFamily(
        "InternVL3.5 with Qwen3",
        _llm("Qwen3ForCausalLM", "qwen3", rms_norm_eps=1e-6, use_sliding_window=False, attention_bias=False),
        rope=None,
        tokenizer="qwen3",
    ),
    "llama": SmallFamily(
        "InternVL2 with Llama 3",
        _llm("LlamaForCausalLM", "llama", attention_bias=False, mlp_bias=False),
        rope={
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
        template="internlm2-chat",
        tokenizer="llama3",
    ),
    "internlm3": SmallFamily(
        "InternVL3 with InternLM3",
        _llm("InternLM3ForCausalLM", "internlm3", bias=False, qkv_bias=False, head_dim=32),
        tokenizer="llama2",
        rope={"type": "dynamic", "factor": 6.0},
    ),
    "phi3": SmallFamily(
        "InternVL2 with Phi-3",
        _llm(
            *("Phi3ForCausalLM", "phi3"),
            **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_dropout": 0.0},
            original_max_position_embeddings=4096,
        ),
        template="phi3-chat",
        tokenizer="phi3",
        rope={
            "type": "longrope",
            "short_factor": [1.0 + pair / 16 for pair in range(16)],
            "long_factor": [1.0 + 4 * pair for pair in range(16)],
        },
    ),
    "internvit-6b": SmallFamily(
        "InternVL2 with InternLM2 and the norms of InternViT-6B",
        _INTERNLM2,
        template="internlm2-chat",
        vision={"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
    ),
}
"""Families by the name that `--model` of the examples takes."""


def small_family(name: str) -> SmallFamily:
    """Return a family.

    Raises:
        ConfigError: none has this name; lists those there are.
    """
    if name not in SMALL_FAMILIES:
        raise ConfigError(f"--model {printable(name)[:80]} is not known{did_you_mean(name, SMALL_FAMILIES)}")
    return SMALL_FAMILIES[name]
