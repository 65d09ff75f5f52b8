"""The `llm_config` of InternLM2: the usual fields of a decoder, and `bias`, which InternVL2 never has."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, read_decoder
from megatron_v2pe.models.config_fields import check_null
from megatron_v2pe.models.config_sections import LanguageConfig, language_model
from megatron_v2pe.models.native_texts import NATIVE_TEXTS, NativeText

ARCHITECTURE = "InternLM2ForCausalLM"
NATIVE_TEXTS.add(ARCHITECTURE, NativeText("llama", only_original={"bias": False}))  # transformers has no class for it


@language_model(
    ARCHITECTURE,
    title="InternLM2",
    model_types=("internlm2",),
    needed=SIZES,
    template="internlm2-chat",
    example="OpenGVLab/InternVL2-2B",
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    Raises:
        V2PEError: of the section's class: it asks for biases, or as `read_decoder` says.
    """
    check_null(section, "hidden_act", "rms_norm_eps", "max_position_embeddings")
    if section.flag("bias", "bias" not in section.content):  # null is false to it
        found = "found true" if section.content.get("bias") else "missing, for which the published class takes true"
        raise section.error(
            f"{section.source}: bias: {found}; supported is InternLM2 without biases (false), as InternVL2 checkpoints "
            "are"
        )
    return read_decoder(section, ARCHITECTURE, "InternLM2", read=("bias",))
