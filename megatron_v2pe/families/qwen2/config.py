"""The `llm_config` of Qwen2 and Qwen2.5: the usual fields, with biases on queries, keys and values."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, check_full_attention, read_decoder
from megatron_v2pe.models.config_sections import LanguageConfig, language_model

ARCHITECTURE = "Qwen2ForCausalLM"


@language_model(
    ARCHITECTURE,
    title="Qwen2",
    model_types=("qwen2",),
    needed=(*SIZES, "num_key_value_heads"),
    example="OpenGVLab/InternVL2_5-1B",
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    Raises:
        V2PEError: of the section's class: it asks for sliding windows, or as `read_decoder` says.
    """
    section.whole("num_key_value_heads", least=1)  # the class takes 32 without it, which fits few of its models
    read = check_full_attention(section)
    return read_decoder(section, ARCHITECTURE, "Qwen2", qkv_bias=True, positions=32768, read=read)
