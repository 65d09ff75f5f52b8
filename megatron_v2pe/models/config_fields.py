"""Which fields of a `config.json` change what a model computes, by every name: what is not computed here is refused.

The published classes take any field and ignore those they do not know; a program that did the same would compute
another model than the file describes. So fields fall into three groups. Those of the published classes are read, by a
family's `config.py` or by `models/config.py`. Other names for what they say (`hidden_activation`, `attention_bias`)
have to say what is computed. Anything else whose name speaks of rotary embedding, attention, norms, activations,
dropout, biases or scales asks for something that is not computed, and is refused with its name. All other fields say
nothing to a model and are let pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import kind_of

SILU, GELU = ("silu", "swish"), ("gelu", "gelu_python")
"""Names of the activations that are computed; `gelu` is the exact one, by the error function."""
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values with which any field asks for nothing."""
ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation", "hidden_act_fn", "act_fn")
EPS = ("norm_eps", "norm_epsilon", "rms_norm_eps", "rms_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon",
       "layernorm_eps", "layernorm_epsilon", "rmsnorm_eps")  # fmt: skip
HEAD_DIM = ("head_dim", "head_size", "attention_head_size", "kv_channels")
"""Names under which sections state the activation, the epsilon of norms and the width of a head."""
MOST_LAYERS, WIDEST, LARGEST_VOCABULARY, MOST_POSITIONS, LARGEST_SIDE = 1000, 1 << 17, 1 << 24, 1 << 30, 1 << 14
"""Limits of sizes, far above any model's: a larger number is a mistake."""
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
    """The fields of a section that its reader does not read, against what is computed."""

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

    def no_adapter(self, names: Iterable[str]) -> None:
        """Check that fields, where they are stated, say that the weights have no low-rank adapter beside them.

        Raises:
            V2PEError: of the section's class: one states the rank of an adapter that was not merged.
        """
        for name in names:
            self._seen.add(name)
            found = self._section.content.get(name)
            if found is not None and not any(_equal(found, value) for value in (0, False)):
                raise self._section.error(
                    f"{self._section.source}: {name}: found {_shown(found)}, which says that the weights hold an "
                    "unmerged adapter: merge it into them (peft's merge_and_unload, then save_pretrained); where it "
                    "is merged already, state 0"
                )

    def unit_scales(self) -> None:
        """Check that factors (`embedding_multiplier`, `logits_scaling`, ...) are 1, with which nothing changes.

        Raises:
            V2PEError: of the section's class: one is another number.
        """
        words, content = {"scale", "scaling", "multiplier", "scalar"}, self._section.content
        names = [name for name in content if words & {*name.split("_")} and name not in ("rope_scaling",)]
        self.same([name for name in names if name not in _QUIET and content[name] not in _NOTHING], 1)

    def nothing_else(self) -> None:
        """Check that no further field asks for something that is not computed.

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
    rest.no_adapter(("use_backbone_lora", "use_llm_lora"))
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


def read_heads(section: Fields, hidden_size: int | None) -> int:
    """Read `num_attention_heads`.

    Args:
        section: of a `config.json`.
        hidden_size: what the heads have to divide; None where they have a width of their own.

    Raises:
        V2PEError: of the section's class: they do not divide it; names both numbers.
    """
    heads = section.whole("num_attention_heads", least=1, most=WIDEST)
    if hidden_size is not None and hidden_size % heads:
        raise section.error(f"{section.source}: hidden_size {hidden_size} is not a multiple of {heads} heads")
    return heads


def read_norm_eps(section: Fields, name: str, unstated: float = 1e-6) -> float:
    """Read the epsilon of norms from the field of this name; the published class takes `unstated` without it."""
    return section.number(name, unstated, 1e-30, 0.1)


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


def _equal(found: Any, value: Any) -> bool:
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return printable(repr(value[:40]))
    return kind_of(value) if isinstance(value, (dict, bool)) or value is None else printable(repr(value)[:40])
