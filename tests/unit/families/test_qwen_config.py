"""Qwen2 and Qwen3: what their sections say and refuse, and that their tables name the tensors of transformers' classes.

The kinds of fault: a field with a default of the class is read with another one; a table that names too few tensors,
or that gives two projections each other's shape.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 6,
         "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 300,
         "rope_theta": 1e6}  # fmt: skip
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
CLASSES = {"qwen2": (QWEN2, Qwen2Config, Qwen2ForCausalLM), "qwen3": (QWEN3, Qwen3Config, Qwen3ForCausalLM)}


def read(section: dict[str, Any], **changes: Any) -> InternVLConfig:
    """Read a model with a language model's section, of which some fields are changed or, with `...`, left out."""
    merged = {name: value for name, value in {**section, **changes}.items() if value is not ...}
    return InternVLConfig.from_hf({**internvl2_2b_config(), "llm_config": merged})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_table_has_the_names_and_shapes_of_transformers(kind, tied):
    section, config_class, model_class = CLASSES[kind]
    table = mapping_table(read(section, tie_word_embeddings=tied))
    ours = {m.name: m.shape for m in table.tensors if m.name.startswith("language_model.")}
    with torch.device("meta"):
        model = model_class(config_class(**section, tie_word_embeddings=tied))
    assert ours == {f"language_model.{name}": tuple(tensor.shape) for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_field_that_is_not_stated_means_what_the_class_takes(kind):
    section, config_class, _ = CLASSES[kind]
    theirs = config_class(**section)
    ours = read(section).llm
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert (ours.norm_eps, ours.initializer_range) == (theirs.rms_norm_eps, theirs.initializer_range)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert read(QWEN3, head_dim=...).llm.head_dim == Qwen3Config(**{**QWEN3, "head_dim": 128}).head_dim == 128


def test_what_the_two_have_of_their_own():
    qwen2, qwen3 = read(QWEN2).llm, read(QWEN3).llm
    assert (qwen2.qkv_bias, qwen2.qk_layernorm, qwen2.head_dim) == (True, False, 16)
    assert (qwen3.qkv_bias, qwen3.qk_layernorm, qwen3.head_dim) == (False, True, 32)
    assert (qwen3.query_size, qwen3.key_size) == (6 * 32, 2 * 32)


@pytest.mark.parametrize("kind", CLASSES)
def test_windows_that_are_turned_off_change_nothing(kind):
    section = CLASSES[kind][0]
    off = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 1}
    assert read(section, **off, layer_types=["full_attention"] * 2) == read(section)
    assert read(section, sliding_window=4096, max_window_layers=0) == read(section)  # the class takes false


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (QWEN2, {"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window: found true"),
        (QWEN2, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (QWEN2, {"num_key_value_heads": ...}, "'num_key_value_heads' is missing"),
        (QWEN2, {"num_key_value_heads": 4}, "6 heads are not a multiple of 4"),
        (QWEN2, {"head_dim": 32}, "head_dim: found 32, but Qwen2 is computed with 16"),
        (QWEN2, {"model_type": "qwen3"}, "model_type 'qwen3' is that of Qwen3ForCausalLM"),
        (QWEN3, {"attention_bias": True}, "attention_bias: found true"),
        (QWEN3, {"head_dim": None}, "head_dim: found null"),
        (QWEN3, {"head_dim": 33}, "expected an even number"),
        (QWEN3, {"num_experts": 128}, "num_experts: found 128"),
    ],
)
def test_what_is_not_computed_is_refused(section, changes, words):
    with pytest.raises(ConfigError, match=words):
        read(section, **changes)
