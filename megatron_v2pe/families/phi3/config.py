"""The `llm_config` of Phi-3: the usual fields of a decoder, dropout of its own and a sliding window."""

from __future__ import annotations

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_decoder import SIZES, read_decoder, refuse_biases
from megatron_v2pe.models.config_sections import LanguageConfig, language_model

ARCHITECTURE = "Phi3ForCausalLM"
POSITIONS, NORM_EPS = 4096, 1e-5
"""What the published class takes where `max_position_embeddings` or `rms_norm_eps` is not stated."""
_DROPOUT = ("resid_pdrop", "embd_pdrop", "attention_dropout")


@language_model(
    ARCHITECTURE,
    title="Phi-3",
    model_types=("phi3",),
    needed=SIZES,
    template="phi3-chat",
    example="OpenGVLab/InternVL2-4B",
)
def read_llm_config(section: Fields) -> LanguageConfig:
    """Read the section.

    A `sliding_window` of at least `max_position_embeddings`, as published, is taken for none: within the trained length
    it hides nothing. Longer documents, which V2PE allows, attend to all that came before.

    Raises:
        V2PEError: of the section's class: it asks for biases, dropout or a narrower window, or as `read_decoder` says.
    """
    refuse_biases(section, "Phi-3", ("attention_bias",))
    for name in _DROPOUT:
        if found := section.number(name, 0.0, 0, 1):
            raise section.error(
                f"{section.source}: {name}: found {found}; supported is Phi-3 without dropout (0.0), as the InternVL "
                "checkpoints are"
            )
    positions = section.whole("max_position_embeddings", POSITIONS, least=1)
    window = section.whole("sliding_window", None, least=1)
    if window is not None and window < positions:
        raise section.error(
            f"{section.source}: sliding_window: found {window}, below max_position_embeddings {positions}; attention "
            "within a window is not computed"
        )
    read = ("attention_bias", "sliding_window", *_DROPOUT)
    return read_decoder(section, ARCHITECTURE, "Phi-3", positions=POSITIONS, norm_eps=NORM_EPS, read=read)
