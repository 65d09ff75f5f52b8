"""Which fields of a `config.json` change what a model computes, by every name: what is not computed here is refused.

The published classes take any field and ignore those they do not know; a program that did the same would compute
another model than the file describes. So fields fall into three groups. Those of the published classes are read by
`config.py`. Other names for what they say (`hidden_activation`, `attention_bias`, ...) have to say what is computed.
Anything else whose name speaks of rotary embedding, attention, norms, activations, dropout, biases or scales asks for
something that is not computed, and is refused with its name. All other fields say nothing to a model and are let pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import kind_of

SILU, GELU = ("silu", "swish"), ("gelu", "gelu_python")
"""Names of the activations that are computed; `gelu` is the exact one, by the error function."""
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that ask for nothing, whatever the field."""
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation", "hidden_act_fn", "act_fn")
_EPS = ("norm_eps", "norm_epsilon", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon",
        "layernorm_eps", "layernorm_epsilon", "rmsnorm_eps")  # fmt: skip
_HEAD = ("head_dim", "head_size", "attention_head_size", "kv_channels")
_SPEAKING = frozenset(
    "rope rotary alibi attn attention attentions norm normalization layernorm rmsnorm act activation dropout drop "
    "pdrop droppath bias window windows sliding swa scale scaling multiplier softcap softcapping scalar moe expert "
    "experts lora quantization sparse ntk yarn mrope irope".split()
)
"""Words in the names of fields that change what is computed."""
_QUIET = frozenset(
    "num_attention_heads attn_implementation attn_impl attn_type attn_mode use_flash_attn use_flash_attention "
    "flash_attn flash_attention use_flash_attention_2 use_sdpa output_attentions add_cross_attention "
    "classifier_dropout max_window_layers pretraining_tp use_fused_rms_norm use_fused_rope fused_rms_norm fused_rope "
    "use_mask_token layer_scale_init_value".split()
)
"""Names with such a word that choose among ways to the same numbers, set initial values, or belong to other tasks."""
_EXPERTS = frozenset("moe expert experts".split())
"""Words of settings that `use_moe` turns off as a whole: InternVL2.5 carries nine of them for experts it has not."""


class Rest:
    """The fields of a section that `config.py` does not read, against what it computes."""

    def __init__(self, section: Fields, read: Iterable[str], kind: str) -> None:
        """Take a section.

        Args:
            section: of a `config.json`.
            read: names of the fields that have been read, and need no look.
            kind: what the section describes, for messages.
        """
        self._section, self._kind = section, kind
        self._seen = {*read}

    def same(self, names: Iterable[str], *values: Any) -> None:
        """Check that fields, where they are stated, say one of the values that are computed.

        Raises:
            V2PEError: of the section's class: one says another; names it, what was found and what is computed.
        """
        for name in names:
            if name in self._seen:
                continue
            self._seen.add(name)
            found = self._section.content.get(name)
            if found is not None and not any(_equal(found, value) for value in values):
                expected = " or ".join(_shown(value) for value in values)
                raise self._section.error(
                    f"{self._section.source}: {name}: found {_shown(found)}, but {self._kind} is computed with "
                    f"{expected}; other checkpoints are not supported"
                )

    def nothing_else(self) -> None:
        """Check that no further field asks for something that is computed.

        Raises:
            V2PEError: of the section's class: one does; names it and says what to do.
        """
        for name, value in self._section.content.items():
            if name in self._seen or name in _QUIET or name.startswith(("_attn", "_flash_attn")):
                continue
            words = {*re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())}
            if self._section.content.get("use_moe") is False:
                words -= _EXPERTS
                words -= {"scale"} if name == "moe_output_scale" else set()
            if not _SPEAKING & words:
                continue
            if any(_equal(value, inert) for inert in _NOTHING):
                continue
            raise self._section.error(
                f"{self._section.source}: {printable(name)[:80]}: found {_shown(value)}, which is not computed; "
                f"the published {self._kind} has no such field. Where the model was made without it, remove it from "
                "config.json"
            )


def check_vision(section: Fields, *, qkv_bias: bool, qk_normalization: bool, norm_type: str, norm_eps: float,
                 head_dim: int) -> None:  # fmt: skip
    """Check the fields of `vision_config` beyond those that are read.

    Args:
        section: the `vision_config`.
        qkv_bias: of the tower, as all that follow.
        qk_normalization: whether queries and keys are normalised.
        norm_type: `layer_norm` or `rms_norm`.
        norm_eps: of the norms.
        head_dim: width of a head.

    Raises:
        V2PEError: of the section's class: a field asks for what is not computed.
    """
    rest = Rest(
        section,
        ("qkv_bias", "qk_normalization", "norm_type", "layer_norm_eps", "drop_path_rate", "hidden_act"),
        "InternViT",
    )
    rest.same(("attention_bias", "bias", "use_bias"), qkv_bias)
    rest.same(("use_qk_norm", "qk_norm", "qk_layernorm"), qk_normalization)
    rest.same(("norm",), norm_type)
    rest.same(_ACTIVATION, *GELU)
    rest.same(_EPS, norm_eps)
    rest.same(_HEAD, head_dim)
    rest.same(("position_embedding_type", "pos_embed_type"), "absolute", "learned")
    rest.nothing_else()


def check_language(section: Fields, *, norm_eps: float, head_dim: int, max_positions: int, scaled: bool) -> None:
    """Check the fields of `llm_config` beyond those that are read.

    Args:
        section: the `llm_config`.
        norm_eps: of the norms.
        head_dim: width of a head.
        max_positions: `max_position_embeddings`.
        scaled: whether the rotary embedding has a scaling.

    Raises:
        V2PEError: of the section's class: a field asks for what is not computed.
    """
    read = ("bias", "rope_theta", "rope_scaling", "rope_parameters", "rope_pos_id_version", "rope_pos_id_stride",
            "rms_norm_eps", "hidden_act")  # fmt: skip
    rest = Rest(section, read, "InternLM2")
    rest.same(("norm_type", "norm"), "rms_norm", "rmsnorm", "RMSNorm")
    rest.same(_ACTIVATION, *SILU)
    rest.same(_EPS, norm_eps)
    rest.same(_HEAD, head_dim)
    rest.same(("partial_rotary_factor", "rotary_pct"), 1)
    rest.same(("rotary_dim",), head_dim)
    rest.same(("causal", "is_causal"), True)
    rest.same(("position_embedding_type", "pos_embed_type"), "rope", "rotary")
    rest.same(("use_parallel_residual", "parallel_residual"), False)
    if scaled:  # newer transformers scales from there
        rest.same(("original_max_position_embeddings",), max_positions)
    if section.content.get("use_sliding_window") is False:
        rest.same(("sliding_window",), section.content.get("sliding_window"))
    if isinstance(kinds := section.content.get("layer_types"), list):
        rest.same(("layer_types",), ["full_attention"] * len(kinds))
    _scales(rest, section.content)
    rest.nothing_else()


def check_top(section: Fields, *, select_layer: int, tokens_per_tile: int) -> None:
    """Check the fields of the whole model beyond those that are read.

    `tie_word_embeddings` is none of them: transformers writes its own default there, true, and the published model
    looks at that of `llm_config` alone.

    Args:
        section: the content of `config.json`.
        select_layer: layer of the tower whose output is taken.
        tokens_per_tile: tokens that a tile becomes.

    Raises:
        V2PEError: of the section's class: a field asks for what is not computed.
    """
    left_over = ("scale",)  # of published experiments without effect
    places = ("rope_theta", "rope_scaling", "rope_parameters")
    rest = Rest(section, ("rope_pos_id_version", "rope_pos_id_stride", *places, *left_over), "chat model")
    rest.same(("use_backbone_lora", "use_llm_lora"), 0, False)
    rest.same(("img_emb_down_sample_ratio",), 1)
    rest.same(("projector_hidden_act",), *GELU)
    rest.same(("vision_feature_layer", "mm_vision_select_layer"), select_layer)
    rest.same(("vision_feature_select_strategy",), "default", "patch")
    rest.same(("num_image_token", "num_image_tokens", "image_seq_length"), tokens_per_tile)
    for name in places:
        value = section.content.get(name)
        if value != section.content["llm_config"].get(name) and not any(_equal(value, inert) for inert in _NOTHING):
            raise section.error(
                f"{section.source}: {name} stands beside llm_config, where nobody reads it, and is not what llm_config "
                "says; move it into it, or remove it"
            )
    rest.nothing_else()


def check_null(section: Fields, *names: str) -> None:
    """Check that fields which may be missing are not null: the published class takes no default in place of null.

    Raises:
        V2PEError: of the section's class: one is.
    """
    for name in names:
        if name in section.content and section.content[name] is None:
            raise section.error(
                f"{section.source}: {name}: found null, with which the published class computes something else or "
                "nothing; state it, or copy config.json again"
            )


def _scales(rest: Rest, content: Mapping[str, Any]) -> None:
    """Factors of 1 change nothing."""
    words = {"scale", "scaling", "multiplier", "scalar"}
    names = [name for name in content if words & {*name.split("_")} and name not in ("rope_scaling",)]
    rest.same([name for name in names if name not in _QUIET and content[name] not in _NOTHING], 1)


def _equal(found: Any, value: Any) -> bool:
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return printable(repr(value[:40]))
    return kind_of(value) if isinstance(value, (dict, bool)) or value is None else printable(repr(value)[:40])
