"""Optional fields of a `config.json` under another name: read, or refused by name, never passed over in silence.

The kind of fault: a newer transformers writes `rope_parameters` in place of `rope_theta` and `rope_scaling`; a reader
that takes its defaults where it misses a field computes another model without a word.
"""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_rope import RopeConfig
from megatron_v2pe.v2pe.rope_scaling import DynamicScaling, LinearScaling
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

DYNAMIC, PLAIN = RopeConfig(1e6, DynamicScaling(2.0, 32768)), RopeConfig(1e6)


def config_with(section, changes, without=()):
    config = internvl2_2b_config()
    part = config[section] if section else config
    for name in without:
        part.pop(name, None)
    part |= changes
    return config


def refusal(section, changes, without=()):
    with pytest.raises(ConfigError) as caught:
        InternVLConfig.from_hf(config_with(section, changes, without))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, DYNAMIC),
        ({"rope_theta": 1000000, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, DYNAMIC),
        ({"rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 2}}, DYNAMIC),
        ({"rope_parameters": {"rope_theta": 1000000, "rope_type": "dynamic", "factor": 2.0}}, DYNAMIC),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, DYNAMIC),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, DYNAMIC),
        ({"rope_scaling": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, PLAIN),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}}, PLAIN),
        ({"rope_theta": 1e6}, PLAIN),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "v2pe", "factor": 1.0}}, PLAIN),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "v2pe", "factor": 1.0}}, PLAIN),
        ({}, RopeConfig(10000.0)),  # as the published class
        (
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 4}},
            RopeConfig(1e6, LinearScaling(4.0)),
        ),
    ],
)
def test_rotary_settings_in_every_spelling(changes, expected):
    read = InternVLConfig.from_hf(config_with("llm_config", changes, ("rope_theta", "rope_scaling")))
    assert read.llm.rope == expected


def test_rotary_settings_as_transformers_writes_them():
    transformers = pytest.importorskip("transformers")
    for scaling, expected in (({"rope_type": "dynamic", "factor": 2.0}, DYNAMIC), ({}, PLAIN)):
        written = transformers.LlamaConfig(rope_theta=1e6, rope_scaling=dict(scaling) or None).to_dict()
        changes = {name: written[name] for name in ("rope_theta", "rope_scaling", "rope_parameters") if name in written}
        read = InternVLConfig.from_hf(config_with("llm_config", changes, ("rope_theta", "rope_scaling")))
        assert read.llm.rope == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_scaling": {"rope_type": "axial", "factor": 4.0}},
            ("rope_scaling: rope_type 'axial' is none of dynamic, linear, llama3, yarn, longrope", "not computed"),
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, ("type 'mrope'",)),
        (
            {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}},
            ("type: found 'dynamic'", "agree"),
        ),
        ({"rope_scaling": {"factor": 2.0}}, ("factor 2.0 and no type",)),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, ("found factor 2.0",)),
        ({"rope_scaling": {"type": "dynamic"}}, ("'factor' is missing",)),
        ({"rope_parameters": {"rope_theta": 5e5}}, ("rope_parameters: rope_theta: found '500000.0'", "'1000000.0'")),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            ("'default'",),
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, ("full_attention", "per kind of layer")),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor: found 0.5",)),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096}},
            ("4096", "32768"),
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "beta_fast": 32}}, ("beta_fast: found 32",)),
        ({"rope_base": 5e5}, ("rope_base: found 500000.0", "not computed")),
        ({"rotary_emb_base": 5e5}, ("rotary_emb_base",)),
        ({"partial_rotary_factor": 0.25}, ("partial_rotary_factor: found 0.25",)),
    ],
)
def test_rotary_settings_that_are_not_computed(changes, words):
    message = refusal("llm_config", changes)
    assert message.startswith("config.json: llm_config") and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("llm_config", {"hidden_act": "relu"}),
        ("llm_config", {"hidden_activation": "gelu_pytorch_tanh"}),
        ("llm_config", {"norm_type": "layer_norm"}),
        ("llm_config", {"layer_norm_eps": 1e-6}),
        ("llm_config", {"use_qk_norm": True}),
        ("llm_config", {"bias": True}),
        ("llm_config", {"attention_bias": True}),
        ("llm_config", {"mlp_bias": True}),
        ("llm_config", {"sliding_window": 4096}),
        ("llm_config", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llm_config", {"attention_dropout": 0.1}),
        ("llm_config", {"attn_pdrop": 0.1}),
        ("llm_config", {"head_dim": 64}),
        ("llm_config", {"attn_logit_softcapping": 50.0}),
        ("llm_config", {"embedding_multiplier": 12.0}),
        ("llm_config", {"num_local_experts": 8}),
        ("llm_config", {"quantization_config": {"bits": 4}}),
        ("vision_config", {"hidden_act": "quick_gelu"}),
        ("vision_config", {"attention_dropout": 0.1}),
        ("vision_config", {"dropout": 0.1}),
        ("vision_config", {"hidden_dropout_prob": 0.1}),
        ("vision_config", {"attention_bias": False}),
        ("vision_config", {"norm_type": "batch_norm"}),
        ("vision_config", {"layernorm_epsilon": 1e-5}),
        ("vision_config", {"window_size": 8}),
        ("", {"use_llm_lora": 128}),
        ("", {"img_emb_down_sample_ratio": 4}),
        ("", {"rope_theta": 5e5}),
        ("", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("", {"quantization_config": {"bits": 4}}),
        ("llm_config", {"position_embedding_type": "alibi"}),
        ("llm_config", {"use_parallel_residual": True}),
        ("llm_config", {"is_causal": False}),
        ("llm_config", {"use_dynamic_ntk": True}),
        ("llm_config", {"mrope_section": [16, 24, 24]}),
        ("llm_config", {"original_max_position_embeddings": 4096}),
        ("llm_config", {"use_moe": True}),
        ("vision_config", {"use_moe": True}),
        ("vision_config", {"num_experts": 8}),
        ("vision_config", {"position_embedding_type": "rope"}),
        ("", {"vision_feature_layer": -2}),
        ("", {"vision_feature_select_strategy": "full"}),
        ("", {"num_image_token": 64}),
        ("", {"rope_theta": 10000.0}),
    ],
)
def test_what_is_not_computed_is_refused_by_name(section, changes):
    assert next(iter(changes)) in refusal(section, changes)


def test_a_missing_field_is_what_the_published_class_takes():
    """Its defaults are biases in the language model, which are not computed, and the norms of the 6B tower."""
    assert "bias" in refusal("llm_config", {}, ("bias",))
    config = internvl2_2b_config()
    for name in ("qk_normalization", "norm_type", "qkv_bias"):
        del config["vision_config"][name]
    vision = InternVLConfig.from_hf(config).vision
    assert (vision.qk_normalization, vision.norm_type, vision.qkv_bias) == (True, "rms_norm", False)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("llm_config", "rope_theta"),
        ("llm_config", "rms_norm_eps"),
        ("llm_config", "max_position_embeddings"),
        ("llm_config", "hidden_act"),
        ("vision_config", "layer_norm_eps"),
        ("vision_config", "hidden_act"),
        ("", "ps_version"),
        ("", "select_layer"),
        ("", "downsample_ratio"),
    ],
)
def test_null_is_not_missing(section, name):
    """The published class takes no default for it: of `ps_version` null it computes v2, where missing is v1."""
    message = refusal(section, {name: None})
    assert f"{name}: found null" in message


def test_nulls_that_say_no_or_nothing():
    config = internvl2_2b_config()
    config |= dict.fromkeys(("torch_dtype", "rope_pos_id_stride", "group_list", "use_llm_lora"))
    config["llm_config"] |= dict.fromkeys(("bias", "rope_parameters", "sliding_window", "head_dim", "torch_dtype"))
    config["vision_config"] |= dict.fromkeys(("qk_normalization", "model_type", "torch_dtype"))
    assert InternVLConfig.from_hf(config) == InternVLConfig.from_hf(internvl2_2b_config())


def test_experts_that_are_switched_off():
    """The tower of every InternVL2.5 carries the settings of experts it has not."""
    switched_off = {
        "_attn_implementation_autoset": True,
        "capacity_factor": 1.2,
        "eval_capacity_factor": 1.4,
        "laux_allreduce": "all_nodes",
        "moe_coeff_ratio": 0.5,
        "moe_intermediate_size": 768,
        "moe_output_scale": 4.0,
        "noisy_gate_policy": "RSample_before",
        "num_experts": 8,
        "num_routed_experts": 4,
        "num_shared_experts": 4,
        "shared_expert_intermediate_size": 3072,
        "use_moe": False,
        "use_residual": True,
        "use_rts": False,
        "use_weighted_residual": False,
    }
    config = config_with("vision_config", switched_off)
    config["llm_config"]["moe_config"] = None
    assert InternVLConfig.from_hf(config) == InternVLConfig.from_hf(internvl2_2b_config())
    assert "moe_mlp_bias" in refusal("vision_config", switched_off | {"moe_mlp_bias": True})


def test_what_a_class_writes_of_its_own_accord():
    """A file with all defaults of transformers 4: `tie_word_embeddings` at the top, types as torch says them."""
    config = internvl2_2b_config()
    config |= {"tie_word_embeddings": True, "torch_dtype": "torch.bfloat16", "use_llm_lora": False}
    config |= {name: config["llm_config"][name] for name in ("rope_theta", "rope_scaling")}
    assert InternVLConfig.from_hf(config) == InternVLConfig.from_hf(internvl2_2b_config())


def test_the_base_that_transformers_5_0_fills_in():
    message = refusal("llm_config", {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}})
    assert "'10000.0'" in message and "transformers 5.0 fills in 10000" in message


def test_fields_that_change_nothing_are_let_pass():
    config = internvl2_2b_config()
    config |= {"auto_map": {"AutoModel": "x"}, "attn_type": "ring", "group_list": None, "chunk_num": 4, "scale": 25.0}
    config["llm_config"] |= {
        "_attn_implementation_autoset": True,
        "add_cross_attention": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "cross_attention_hidden_size": None,
        "head_dim": 128,
        "hidden_activation": "silu",
        "layer_types": ["full_attention"] * 24,
        "logits_scaling": 1.0,
        "pretraining_tp": 1,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "use_bfloat16": True,
    }
    config["vision_config"] |= {"use_flash_attn": True, "attention_bias": True, "rms_norm_eps": 1e-6, "head_dim": 64}
    assert InternVLConfig.from_hf(config) == InternVLConfig.from_hf(internvl2_2b_config())


@pytest.mark.parametrize(
    ("section", "changes", "without", "words"),
    [
        ("", {}, ("model_type",), ("'model_type' is missing", "InternVLChatModel", "internvl_chat")),
        ("", {}, ("model_type", "architectures"), ("'model_type' and 'architectures' are missing", "supported")),
        ("", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, (), ("'LlamaForCausalLM'", "supported")),
        ("", {"architectures": ["LlavaForConditionalGeneration"]}, (), ("'LlavaForConditionalGeneration'",)),
        ("", {"model_type": "internvl"}, ("architectures",), ("'internvl'", "text_config", "llm_config")),
        ("llm_config", {"architectures": ["FalconForCausalLM"]}, (), ("'FalconForCausalLM'", "supported")),
        ("llm_config", {"model_type": "gpt2"}, (), ("'gpt2'", "supported")),
        ("llm_config", {"model_type": "llama"}, (), ("is InternLM2ForCausalLM, but", "'llama' is that of LlamaForC")),
        ("", {"use_llm_lora": 128}, (), ("use_llm_lora: found 128", "unmerged adapter", "state 0")),
        ("llm_config", {}, ("architectures",), ("'architectures' is missing", "InternLM2ForCausalLM")),
        ("vision_config", {"model_type": "siglip_vision_model"}, (), ("'siglip_vision_model'", "supported")),
        ("", {"text_config": {}}, ("llm_config",), ("'llm_config' is missing", "text_config")),
        ("", {"text_config": {"hidden_size": 1}}, (), ("llm_config and text_config differ",)),
    ],
)
def test_another_architecture_is_named_and_a_missing_one_asked_for(section, changes, without, words):
    message = refusal(section, changes, without)
    assert all(word in message for word in words), message


def test_a_template_that_is_taken_is_said_once(caplog):
    config = internvl2_2b_config()
    del config["template"]
    for _ in range(2):
        assert InternVLConfig.from_hf(config, "a/config.json").template == "internlm2-chat"
    assert (
        caplog.text.count("a/config.json: no template is stated; conversations are taken to be of internlm2-chat") == 1
    )
