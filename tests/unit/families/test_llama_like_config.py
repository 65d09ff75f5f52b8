"""Llama, Phi-3, InternLM3 and InternLM2.5: published sections are read, tables have the names of transformers' classes.

The kinds of fault: a section of a published checkpoint is refused or read with another number; a scaling in one of its
older spellings is read as another one; a table that names too few tensors, or with another order of rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_rope import RopeConfig
from megatron_v2pe.models.native_config import to_native, to_original
from megatron_v2pe.v2pe.rope_scaling import DynamicScaling, Llama3Scaling, LongRopeScaling
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

SHORT, LONG = [1.0 + pair / 50 for pair in range(48)], [1.1 + pair**1.1 for pair in range(48)]
YI_34B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 20480,
    "max_position_embeddings": 4096, "num_attention_heads": 56, "num_hidden_layers": 60, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5000000.0, "vocab_size": 64064,
    "tie_word_embeddings": False, "use_cache": True, "_attn_implementation_autoset": True,
}  # fmt: skip
LLAMA_3_70B = {
    **YI_34B, "hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 8192, "mlp_bias": False,
    "num_attention_heads": 64, "num_hidden_layers": 80, "rope_theta": 500000.0, "vocab_size": 128265,
}  # fmt: skip
PHI_3_MINI = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
    "embd_pdrop": 0.0, "resid_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "initializer_range": 0.02, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "su"}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32020,
}  # fmt: skip
INTERNLM3_8B = {
    "architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "attention_dropout": 0.0, "bias": False,
    "qkv_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 10240,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000,
    "vocab_size": 128512,
}  # fmt: skip
INTERNLM2_5_20B = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "attn_implementation": "flash_attention_2",
    "bias": False, "hidden_act": "silu", "hidden_size": 6144, "intermediate_size": 16384, "moe_config": None,
    "max_position_embeddings": 32768, "num_attention_heads": 48, "num_hidden_layers": 48, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 3.0, "type": "dynamic"},
    "rope_theta": 50000000, "vocab_size": 92553, "_attn_implementation_autoset": True, "use_bfloat16": True,
}  # fmt: skip
WRITTEN = Phi3Config(**{**PHI_3_MINI, "rope_scaling": {**PHI_3_MINI["rope_scaling"], "type": "longrope"}}).to_dict()
LONGROPE = LongRopeScaling(tuple(SHORT), tuple(LONG), 4096, 32.0)
SMALL = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 2,
         "intermediate_size": 64, "vocab_size": 300}  # fmt: skip


def read(section: dict[str, Any], **changes: Any) -> InternVLConfig:
    """Read a model with a language model's section, of which some fields are changed or, with `...`, left out."""
    merged = {name: value for name, value in {**section, **changes}.items() if value is not ...}
    return InternVLConfig.from_hf({**internvl2_2b_config(), "llm_config": merged})


@pytest.mark.parametrize(
    ("section", "layers", "head_dim", "groups", "rope"),
    [
        (YI_34B, 60, 128, 8, RopeConfig(5e6)),
        (LLAMA_3_70B, 80, 128, 8, RopeConfig(5e5)),
        (PHI_3_MINI, 32, 96, 32, RopeConfig(1e4, LONGROPE)),
        (INTERNLM3_8B, 48, 128, 2, RopeConfig(5e7, DynamicScaling(6.0, 32768))),
        (INTERNLM2_5_20B, 48, 128, 8, RopeConfig(5e7, DynamicScaling(3.0, 32768))),
        (internvl2_2b_config()["llm_config"], 24, 128, 8, RopeConfig(1e6, DynamicScaling(2.0, 32768))),
    ],
)
def test_published_sections(section, layers, head_dim, groups, rope):
    llm = read(section).llm
    assert (llm.num_layers, llm.head_dim, llm.num_query_groups, llm.rope) == (layers, head_dim, groups, rope)
    assert (llm.vocab_size, llm.norm_eps) == (section["vocab_size"], 1e-5)
    assert not (llm.qkv_bias or llm.qk_layernorm or llm.tie_word_embeddings)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("section", "config_class", "model_class", "own"),
    [
        (YI_34B, LlamaConfig, LlamaForCausalLM, {}),
        (LLAMA_3_70B, LlamaConfig, LlamaForCausalLM, {"head_dim": 24}),
        (PHI_3_MINI, Phi3Config, Phi3ForCausalLM, {"rope_scaling": None, "pad_token_id": 0}),
    ],
)
def test_the_table_has_the_names_and_shapes_of_transformers(section, config_class, model_class, own, tied):
    changes = {**SMALL, **own, "tie_word_embeddings": tied}
    table = mapping_table(read(section, **changes))
    ours = {m.name: m.shape for m in table.tensors if m.name.startswith("language_model.")}
    with torch.device("meta"):
        model = model_class(config_class(**{**section, **changes}))
    assert ours == {f"language_model.{name}": tuple(tensor.shape) for name, tensor in model.named_parameters()}


def test_internlm3_has_the_names_of_llama_and_may_have_biases_on_queries_keys_and_values():
    tables = {qkv_bias: mapping_table(read(INTERNLM3_8B, qkv_bias=qkv_bias)).by_name() for qkv_bias in (False, True)}
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "intermediate_size")
    same = {name: INTERNLM3_8B[name] for name in (*sizes, "vocab_size")}
    assert tables[False] == mapping_table(read(YI_34B, **same)).by_name()
    added = tables[True].keys() - tables[False].keys()
    names = {f"language_model.model.layers.{n}.self_attn.{part}_proj.bias" for n in range(48) for part in "qkv"}
    assert added == names and read(INTERNLM3_8B, qkv_bias=True).llm.qkv_bias


@pytest.mark.parametrize(("section", "config_class"), [(YI_34B, LlamaConfig), (PHI_3_MINI, Phi3Config)])
def test_a_field_that_is_not_stated_means_what_the_class_takes(section, config_class):
    names = ("architectures", "model_type", *SMALL)
    bare = {name: value for name, value in {**section, **SMALL}.items() if name in names}
    theirs, ours = config_class(**bare), read(bare).llm
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert (ours.norm_eps, ours.initializer_range) == (theirs.rms_norm_eps, theirs.initializer_range)
    assert (ours.tie_word_embeddings, ours.rope) == (theirs.tie_word_embeddings, RopeConfig(1e4))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "rope_type": "longrope"}},
        {"rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "rope_type": "longrope", "type": "su"}},
        {"rope_parameters": WRITTEN["rope_parameters"], "rope_scaling": ...},
        {
            "rope_scaling": {**PHI_3_MINI["rope_scaling"], "original_max_position_embeddings": 4096, "factor": 32.0},
            "original_max_position_embeddings": ...,
        },
        {"rope_parameters": WRITTEN["rope_parameters"]},
    ],
)
def test_longrope_in_every_spelling(changes):
    assert read(PHI_3_MINI, **changes) == read(PHI_3_MINI)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_llama3_in_both_places(place):
    numbers = {"factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    section = read(LLAMA_3_70B, **{place: {"rope_type": "llama3", **numbers}}, max_position_embeddings=131072)
    assert section.llm.rope == RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize("section", [YI_34B, {**LLAMA_3_70B, "rope_scaling": LLAMA3}, PHI_3_MINI, INTERNLM3_8B])
def test_transformers_computes_the_same_angles_from_the_native_form(section):
    """Also of the older name `su`, which transformers 5 does not open; the way back gives the file as it was."""
    config = {**internvl2_2b_config(), "llm_config": section}
    native = to_native(config, image_token_id=5)
    text = AutoConfig.for_model(**native["text_config"])
    rope, ours = text.rope_parameters, read(section).llm
    if (kind := rope["rope_type"]) != "default":
        for length in (1, 4096, 4097, 50_000):
            expected, factor = ROPE_INIT_FUNCTIONS[kind](text, None, seq_len=length)
            found = ours.rope.scaling.frequencies(ours.head_dim, ours.rope.base, length)
            assert ((found - expected) / expected).abs().max() < 4e-7  # measured 2e-7: float32
            assert ours.rope.scaling.attention_factor == pytest.approx(factor, abs=1e-15)
    assert (kind, rope["rope_theta"]) == (ours.rope.scaling.kind.replace("none", "default"), ours.rope.base)
    assert to_original(native)["llm_config"]["rope_scaling"] == section["rope_scaling"]


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (YI_34B, {"attention_bias": True}, "attention_bias: found true"),
        (YI_34B, {"mlp_bias": True}, "mlp_bias: found true"),
        (YI_34B, {"sliding_window": 4096}, "sliding_window: found 4096"),
        (YI_34B, {"hidden_size": 7170}, "7170 is not a multiple of 56 heads"),
        (LLAMA_3_70B, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor' is missing"),
        (
            LLAMA_3_70B,
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "llm_config: rotary scaling llama3: low_freq_factor is 4.0",
        ),
        (LLAMA_3_70B, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "short_factor": [1.0]}}, "with yarn"),
        (PHI_3_MINI, {"resid_pdrop": 0.1}, "resid_pdrop: found 0.1"),
        (PHI_3_MINI, {"sliding_window": 2047}, "sliding_window: found 2047, below max_position_embeddings 131072"),
        (PHI_3_MINI, {"partial_rotary_factor": 0.75}, "partial_rotary_factor: found 0.75"),
        (PHI_3_MINI, {"original_max_position_embeddings": ...}, "'original_max_position_embeddings' is missing"),
        (
            PHI_3_MINI,
            {"num_attention_heads": 24, "num_key_value_heads": 24},
            "short_factor has 48 numbers, heads of width 128 have 64 pairs",
        ),
        (
            PHI_3_MINI,
            {"rope_scaling": {**PHI_3_MINI["rope_scaling"], "short_mscale": 1.2}},
            "short_mscale: found 1.2, which is not computed with longrope",
        ),
        (
            PHI_3_MINI,
            {"rope_scaling": {**PHI_3_MINI["rope_scaling"], "original_max_position_embeddings": 8192}},
            "found '8192', but .*original_max_position_embeddings is '4096'; make them agree",
        ),
        (PHI_3_MINI, {"rope_scaling": {"type": "su", "short_factor": SHORT}}, "'long_factor' is missing"),
        (INTERNLM3_8B, {"bias": True}, "bias: found true"),
    ],
)
def test_what_is_not_computed_is_refused(section, changes, words):
    with pytest.raises(ConfigError, match=words):
        read(section, **changes)
