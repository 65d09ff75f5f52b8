"""The `llm_config` of InternLM3: the usual fields of a decoder, `bias` and `qkv_bias`, both false in InternVL3-9B."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, read_decoder, refuse_biases
from megatron_v2pe.models.config_fields import WIDEST
from megatron_v2pe.models.config_sections import LanguageConfig, language_model
from megatron_v2pe.models.native_texts import NATIVE_TEXTS, NativeText

ARCHITECTURE = "InternLM3ForCausalLM"
NATIVE_TEXTS.add(  # published as llama, which 5.23 computes for `internlm3` too
    ARCHITECTURE, NativeText("llama", only_original={"bias": False, "qkv_bias": False}, reads=("internlm3",))
)


@language_model(
    ARCHITECTURE, title="InternLM3", model_types=("internlm3",), needed=SIZES, example="OpenGVLab/InternVL3-9B"
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    `qkv_bias` puts biases on queries, keys and values, `bias` on all the other projections.

    Raises:
        V2PEError: of the section's class: `bias` is true, or as `read_decoder` says.
    """
    refuse_biases(section, "InternLM3", ("bias",))
    return read_decoder(
        section,
        ARCHITECTURE,
        "InternLM3",
        qkv_bias=section.flag("qkv_bias", False),
        head_dim=section.whole("head_dim", None, 1, WIDEST),
        positions=32768,
        read=("bias", "qkv_bias"),
    )
