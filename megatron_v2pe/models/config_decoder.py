"""The usual section of a language model: the fields that InternLM2, Llama, Qwen2 and many others share, read once.

A family whose `llm_config` has these names reads it by `read_decoder` and adds what is its own. A family with other
names reads its fields itself and makes a `LanguageConfig` of them (`docs/add_a_language_model.md` shows one).
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config_fields import (
    ACTIVATION,
    EPS,
    HEAD_DIM,
    LARGEST_VOCABULARY,
    MOST_LAYERS,
    MOST_POSITIONS,
    SILU,
    WIDEST,
    Rest,
    check_null,
    read_heads,
    read_norm_eps,
)
from megatron_v2pe.models.config_rope import ORIGINAL, rope_config
from megatron_v2pe.models.config_sections import LanguageConfig

SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
"""Fields of a decoder for which there is no default."""
_READ = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act")


def read_decoder(
    section: Fields,
    architecture: str,
    title: str,
    *,
    qkv_bias: bool = False,
    qk_layernorm: bool = False,
    head_dim: int | None = None,
    positions: int = 2048,
    norm_eps: float = 1e-6,
    read: Iterable[str] = (),
) -> LanguageConfig:
    """Read an `llm_config` with the usual names of fields.

    Args:
        section: the `llm_config`.
        architecture: name under which the family is registered.
        title: name of the family in messages.
        qkv_bias: whether the projections to queries, keys and values have biases.
        qk_layernorm: whether every head of queries and keys is normalised before it is rotated.
        head_dim: width of a head where the section does not state it; None: heads share `hidden_size` evenly, and
            `head_dim` is no field of the section.
        positions: what the published class takes where `max_position_embeddings` is not stated.
        norm_eps: what it takes where `rms_norm_eps` is not.
        read: further fields with words such as `bias` or `norm` in their names, which the caller has read.

    Raises:
        V2PEError: of the section's class: a field is missing, of another type or out of range, sizes do not go
            together, or a field asks for what is not computed.
    """
    check_null(section, "hidden_act", "rms_norm_eps", "max_position_embeddings")
    section.text("hidden_act", "silu", SILU)
    hidden_size = section.whole("hidden_size", least=1, most=WIDEST)
    own = None if head_dim is None else section.whole("head_dim", head_dim, 1, WIDEST)
    heads = read_heads(section, hidden_size if own is None else None)
    width = hidden_size // heads if own is None else own
    positions = section.whole("max_position_embeddings", positions, 1, MOST_POSITIONS)
    config = LanguageConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        num_layers=section.whole("num_hidden_layers", least=1, most=MOST_LAYERS),
        num_attention_heads=heads,
        num_query_groups=section.whole("num_key_value_heads", heads, 1, heads),
        head_dim=width,
        ffn_hidden_size=section.whole("intermediate_size", least=1, most=8 * WIDEST),
        vocab_size=section.whole("vocab_size", least=1, most=LARGEST_VOCABULARY),
        max_position_embeddings=positions,
        norm_eps=read_norm_eps(section, "rms_norm_eps", norm_eps),
        initializer_range=section.number("initializer_range", 0.02, 0, 100),
        tie_word_embeddings=section.flag("tie_word_embeddings", False),
        rope=rope_config(section, positions, width),
        qkv_bias=qkv_bias,
        qk_layernorm=qk_layernorm,
    )
    config.check(section)
    _check_rest(section, config, title, read)
    return config


def check_full_attention(section: Fields) -> tuple[str, ...]:
    """Check that every layer attends to all that came before, in a section with the fields of Qwen's classes.

    Those look at `sliding_window` and `max_window_layers` only where `use_sliding_window` is true, which it is in no
    published checkpoint.

    Returns:
        The names of the fields that have been read.

    Raises:
        V2PEError: of the section's class: `use_sliding_window` is true.
    """
    if section.flag("use_sliding_window", False):
        raise section.error(
            f"{section.source}: use_sliding_window: found true, but attention within a window is not computed; "
            "supported is attention to all that came before (false)"
        )
    return ("use_sliding_window", "sliding_window", "max_window_layers")


def refuse_biases(section: Fields, title: str, names: Iterable[str]) -> None:
    """Check that fields which ask for biases are false, null or missing.

    Raises:
        V2PEError: of the section's class: one is true; names it.
    """
    for name in names:
        if section.flag(name, False):
            raise section.error(
                f"{section.source}: {name}: found true; supported is {title} without these biases (false), as the "
                "InternVL checkpoints are"
            )


def _check_rest(section: Fields, config: LanguageConfig, title: str, read: Iterable[str]) -> None:
    """Check the fields beyond those that are read."""
    rest = Rest(section, (*_READ, *read), title)
    rest.same(("norm_type", "norm"), "rms_norm", "rmsnorm", "RMSNorm")
    rest.same(ACTIVATION, *SILU)
    rest.same(EPS, config.norm_eps)
    rest.same(HEAD_DIM, config.head_dim)
    rest.same(("partial_rotary_factor", "rotary_pct"), 1)
    rest.same(("rotary_dim",), config.head_dim)
    rest.same(("causal", "is_causal"), True)
    rest.same(("position_embedding_type", "pos_embed_type"), "rope", "rotary")
    rest.same(("use_parallel_residual", "parallel_residual"), False)
    if config.rope.scaling.kind in ("dynamic", "linear"):  # some versions of transformers scale from there
        rest.same((ORIGINAL,), config.max_position_embeddings)
    if section.content.get("use_sliding_window") is False:
        rest.same(("sliding_window",), section.content.get("sliding_window"))
    if isinstance(kinds := section.content.get("layer_types"), list):
        rest.same(("layer_types",), ["full_attention"] * len(kinds))
    rest.unit_scales()
    rest.nothing_else()
