"""The native layout: `config.json` and tensors go there and back without a loss, and what cannot go is named."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from helpers.native_models import LLMS, SPECIAL, VISION, VISION_6B, from_keys, small_config, small_state, to_keys
from megatron_v2pe.checkpoint.hf.native_table import MODULE_NAMES
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config, read_stated
from megatron_v2pe.models.native_config import (
    NATIVE,
    RECORD,
    in_layout,
    layout_of_config,
    to_original,
)
from megatron_v2pe.models.native_texts import with_language_model
from megatron_v2pe.models.preset_table import PRESETS
from megatron_v2pe.models.presets import preset_config, reduced

AutoConfig = pytest.importorskip("transformers").AutoConfig
AutoModelForImageTextToText = pytest.importorskip("transformers").AutoModelForImageTextToText
CONTEXT = SPECIAL["img_context_id"]


def native_config(name, **changes):
    return in_layout(small_config(name, **changes), NATIVE, CONTEXT)


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize("version", ["default", "v2pe_fix"])
def test_a_config_comes_back_as_it_was(name, version):
    positions = {"rope_pos_id_version": version, "rope_pos_id_stride": 64} if version != "default" else {}
    config = small_config(name, auto_map={"AutoModel": "modeling.X"}, select_layer=-2, **positions)
    before = copy.deepcopy(config)
    native = json.loads(json.dumps(in_layout(config, NATIVE, CONTEXT)))
    assert config == before
    assert native["text_config"]["model_type"] == {"internlm2": "llama", "internlm3": "llama"}.get(name, name)
    assert "auto_map" not in {**native, **native["text_config"], **native["vision_config"]}  # would be remote code
    assert (native["image_token_id"], native["image_seq_length"], native["vision_feature_layer"]) == (CONTEXT, 4, -2)
    assert InternVLConfig.from_hf(native) == InternVLConfig.from_hf(config)
    back = in_layout(to_original(native), "original")
    for section in ("llm_config", "vision_config"):
        found, expected = back.pop(section), before.pop(section)
        assert {field: found[field] for field in expected} == expected
    assert back == before


@pytest.mark.parametrize("tower", [VISION, VISION_6B], ids=["300M", "6B"])
@pytest.mark.parametrize("name", LLMS)
def test_tensors_come_back_bit_by_bit(name, tower):
    config = small_config(name, vision_config=tower)
    model, state = InternVLConfig.from_hf(config), small_state(config)
    state = {key: value.to(torch.bfloat16) for key, value in state.items()}
    original, native = (
        mapping_table(model),
        mapping_table(InternVLConfig.from_hf(in_layout(config, NATIVE, CONTEXT)), NATIVE),
    )
    there = from_keys(native, to_keys(original, state))
    again = from_keys(native, to_keys(native, there))
    back = from_keys(original, to_keys(native, again))
    assert {*back} == {*state} and all(torch.equal(back[key], state[key]) for key in state)
    assert len(there) > len(state)
    assert sum(value.numel() for value in there.values()) == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("name", PRESETS)
def test_published_models(name):
    """Reduced widths: every bit comes back. Published sizes: names and shapes are those of transformers' modules."""
    config = reduced(preset_config(name))
    native = in_layout(config, NATIVE, CONTEXT)
    model = InternVLConfig.from_hf(native)
    assert model == InternVLConfig.from_hf(config)
    one, other = mapping_table(model), mapping_table(model, NATIVE)
    generator = torch.Generator().manual_seed(0)
    state = {row.name: torch.randint(1 << 15, row.shape, generator=generator).short() for row in one.tensors}
    back = from_keys(one, to_keys(other, from_keys(other, to_keys(one, state))))
    assert {*back} == {*state} and all(torch.equal(back[key], state[key]) for key in state)

    whole = in_layout(preset_config(name), NATIVE, CONTEXT)
    table = mapping_table(InternVLConfig.from_hf(whole), NATIVE).renamed(MODULE_NAMES)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**whole)).state_dict()
    if whole["tie_word_embeddings"]:
        del theirs["lm_head.weight"]
    assert {row.name: row.shape for row in table.tensors} == {key: tuple(value.shape) for key, value in theirs.items()}


def test_the_names_of_modules_are_read_too():
    model = InternVLConfig.from_hf(native_config("qwen2"))
    written, modules = mapping_table(model, NATIVE), mapping_table(model, NATIVE, ["model.vision_tower.x"])
    assert modules == written.renamed(MODULE_NAMES)
    assert {"model.language_model.norm.weight", "model.multi_modal_projector.linear_1.bias"} <= modules.by_name().keys()
    assert mapping_table(model, NATIVE, written.by_name()) == written
    assert mapping_table(model, NATIVE, [*written.by_name(), "lm_head.weight"]) == written  # one of the other kind


def test_a_folder_is_read_in_original_form(tmp_path):
    native = native_config("internlm2")
    (tmp_path / "config.json").write_text(json.dumps(native))
    assert layout_of(tmp_path) == layout_of_config(native) == NATIVE
    assert read_stated(tmp_path) == native and read_config(tmp_path) == to_original(native)
    assert InternVLConfig.from_folder(tmp_path).llm.architecture == "InternLM2ForCausalLM"


def test_a_published_native_config_with_fields_left_out():
    """As transformers before 5 wrote files: what equals a class's default is not there."""
    text = {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "num_hidden_layers": 24,
            "num_key_value_heads": 2, "intermediate_size": 4864, "rope_theta": 1000000.0, "vocab_size": 151674,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}}  # fmt: skip
    vision = {"model_type": "internvl_vision", "attention_bias": True, "patch_size": [14, 14], "image_size": [448, 448],
              "dropout": 0.0, "hidden_dropout_prob": 0.0, "initializer_factor": 1.0}  # fmt: skip
    stated = {"architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl"}
    model = InternVLConfig.from_hf({**stated, "text_config": text, "vision_config": vision})
    assert (model.llm.architecture, model.llm.max_position_embeddings) == ("Qwen2ForCausalLM", 32768)
    assert not model.llm.tie_word_embeddings
    assert (model.vision.num_layers, model.vision.norm_type, model.vision.qk_normalization) == (24, "layer_norm", False)
    assert (model.tokens_per_tile, model.template, model.use_thumbnail, model.max_dynamic_patch) == (
        256, "internvl2_5", True, 12)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": {"model_type": "qwen3_moe"}}, ("text_config: model_type 'qwen3_moe'", "qwen2")),
        ({"text_config": {"model_type": "gpt_oss"}}, ("text_config: model_type 'gpt_oss'", "supported")),
        ({"text_config": {"attention_bias": True}}, ("text_config: attention_bias", "true")),
        ({"text_config": {"vocab_size": "many"}}, ("text_config: vocab_size", "expected a whole number")),
        ({"text_config": {"layer_types": ["sliding_attention"] * 2}}, ("text_config: layer_types",)),
        ({"vision_config": {"use_mean_pooling": False}}, ("vision_config: use_mean_pooling", "True")),
        ({"vision_config": {"use_mask_token": True}}, ("vision_config: use_mask_token",)),
        ({"vision_config": {"use_qk_norm": True, "layer_norm_eps": 1e-5}}, ("vision_config: layer_norm_eps", "1e-05")),
        ({"vision_config": {"image_size": [28, 56]}}, ("vision_config: image_size", "square")),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, ("siglip_vision_model", "internvl_vision")),
        ({"vision_config": {"attention_dropout": 0.1}}, ("vision_config: attention_dropout",)),
        ({"vision_config": {"hidden_dropout_prob": 0.1}}, ("vision_config: dropout", "0.1")),
        (
            {"vision_config": {"hidden_dropout_prob": 0.1, "dropout": 0.0}},
            ("hidden_dropout_prob is 0.1", "dropout, its"),
        ),
        ({"vision_config": {"attention_bias": True, "qkv_bias": False}}, ("attention_bias is True", "qkv_bias, its")),
        ({"vision_feature_select_strategy": "full"}, ("vision_feature_select_strategy", "default")),
        ({"projector_hidden_act": "relu"}, ("projector_hidden_act", "gelu")),
        ({"image_seq_length": 256}, ("image_seq_length", "256", "4")),
        ({"architectures": ["InternVLModel"]}, ("InternVLModel", "InternVLForConditionalGeneration")),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, ("Llava", "internvl")),
        ({"model_type": "qwen2_vl", "architectures": None}, ("'qwen2_vl'", "supported")),
    ],
)
def test_what_is_not_computed_is_named(changes, words):
    config = native_config("llama")
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError) as caught:
        InternVLConfig.from_hf(config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


STRANGE = [None, True, -1, 3.5, 1e400, 10**30, "", "x", [], ["a"], [14, 15], {}, {"a": 1}, {"llm_config": 3},
           {"config": {"llm_config": 1}}, {"llm_config": {"rope_scaling": 5}},
           {"vision_config": {"architectures": ["X"]}}]  # fmt: skip


def test_a_strange_value_is_refused_or_means_a_model():
    """Every field of a native file takes every strange value: what is raised is an error for users."""
    refused = 0
    for place in (None, "text_config", "vision_config", RECORD):
        whole = native_config("internlm2", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=3)
        for name in [*(whole if place is None else whole[place]), "rope_scaling", "rope_parameters"]:
            for value in STRANGE:
                config = copy.deepcopy(whole)
                (config if place is None else config[place])[name] = value
                try:
                    model = InternVLConfig.from_hf(config)
                    assert InternVLConfig.from_hf(in_layout(to_original(config), NATIVE, CONTEXT)) == model
                except ConfigError:
                    refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ps_version": "v1"}, ("ps_version", "v1")),
        ({"vision_config": {**VISION_6B, "layer_norm_eps": 1e-5}}, ("layer_norm_eps is 1e-05", "original layout")),
        ({"llm_config": {**LLMS["internlm3"], "qkv_bias": True}}, ("qkv_bias", "llama")),
    ],
)
def test_what_the_native_class_does_not_compute_stays_original(changes, words):
    with pytest.raises(ConfigError) as caught:
        in_layout(small_config("internlm3", **changes), NATIVE, CONTEXT)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_llama_of_a_native_folder_becomes_internlm2_when_asked():
    native = native_config("internlm2")
    del native[RECORD]
    plain = to_original(native)
    assert plain["llm_config"]["architectures"] == ["LlamaForCausalLM"]
    asked = with_language_model(plain, "internlm2")
    model = InternVLConfig.from_hf(asked)
    assert model.llm == InternVLConfig.from_hf(small_config("internlm2")).llm
    assert "language_model.model.layers.0.attention.wqkv.weight" in mapping_table(model).by_name()
    with pytest.raises(ConfigError, match="qwen2 is qwen2 in transformers"):
        with_language_model(plain, "qwen2")
    with pytest.raises(ConfigError, match="'internlm4' is not known; known: internlm2, internlm3, llama,"):
        with_language_model(plain, "internlm4")


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("content", [[], "", 0, False])
def test_a_section_that_is_no_object_is_refused(section, content):
    """An empty list is not an empty object, which would mean the defaults of transformers."""
    native = {**native_config("qwen2"), section: content}
    with pytest.raises(ConfigError, match=f"{section}: found .*, expected an object"):
        to_original(native)
