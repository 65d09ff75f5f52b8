"""The `llm_config` of Qwen3: heads of a stated width, norms on queries and keys, no biases."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, check_full_attention, read_decoder, refuse_biases
from megatron_v2pe.models.config_fields import check_null
from megatron_v2pe.models.config_sections import LanguageConfig, language_model

ARCHITECTURE = "Qwen3ForCausalLM"
HEAD_DIM = 128
"""What the published class takes where `head_dim` is not stated."""


@language_model(
    ARCHITECTURE,
    title="Qwen3",
    model_types=("qwen3",),
    needed=(*SIZES, "num_key_value_heads"),
    example="OpenGVLab/InternVL3_5-1B",
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    Raises:
        V2PEError: of the section's class: it asks for sliding windows or biases, or as `read_decoder` says.
    """
    check_null(section, "head_dim")
    refuse_biases(section, "Qwen3", ("attention_bias",))
    section.whole("num_key_value_heads", least=1)  # the class takes 32 without it, which fits few of its models
    read = ("attention_bias", *check_full_attention(section))
    return read_decoder(
        section, ARCHITECTURE, "Qwen3", head_dim=HEAD_DIM, qk_layernorm=True, positions=32768, read=read
    )
