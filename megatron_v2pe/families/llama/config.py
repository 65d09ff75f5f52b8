"""The `llm_config` of Llama 2, Llama 3 and Yi: the usual fields of a decoder, none of whose projections has a bias."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, read_decoder, refuse_biases
from megatron_v2pe.models.config_fields import WIDEST
from megatron_v2pe.models.config_sections import LanguageConfig, language_model

ARCHITECTURE = "LlamaForCausalLM"


@language_model(
    ARCHITECTURE, title="Llama", model_types=("llama",), needed=SIZES, example="OpenGVLab/InternVL2-Llama3-76B"
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    There is no default for the conversation template: Yi and Llama 3 were trained with different ones.

    Raises:
        V2PEError: of the section's class: it asks for biases, or as `read_decoder` says.
    """
    biases = ("attention_bias", "mlp_bias")
    refuse_biases(section, "Llama", biases)
    own_width = section.whole("head_dim", None, 1, WIDEST)
    return read_decoder(section, ARCHITECTURE, "Llama", head_dim=own_width, read=biases)
