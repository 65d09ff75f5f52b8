"""The presets: their numbers of parameters are the published ones, and a checkpoint's own configuration comes first."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.memory import stored_parameters
from megatron_v2pe.models.preset_table import LANGUAGE_SHAPES, PRESETS, TOWER_SHAPES
from megatron_v2pe.models.presets import preset_config, preset_named, reduced


def counted_by_hand(config):
    """Return the parameters of a `config.json`, from its fields and from what each class is known to have."""
    llm, vision = config["llm_config"], config["vision_config"]
    kind, width, wide = llm["architectures"][0], llm["hidden_size"], llm["intermediate_size"]
    head = llm.get("head_dim", width // llm["num_attention_heads"])
    queries, keys = head * llm["num_attention_heads"], head * llm["num_key_value_heads"]
    layer = width * (queries + 2 * keys) + queries * width + 3 * width * wide + 2 * width
    layer += {"Qwen2ForCausalLM": queries + 2 * keys, "Qwen3ForCausalLM": 2 * head}.get(kind, 0)
    decoder = llm["num_hidden_layers"] * layer + 2 * llm["vocab_size"] * width + width
    v, mlp = vision["hidden_size"], vision["intermediate_size"]
    large = vision["norm_type"] == "rms_norm"
    each = 4 * v * v + 2 * v * mlp + (mlp + 2 * v) + 2 * v + (4 * v if large else 7 * v)
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    tower = vision["num_hidden_layers"] * each + (3 * vision["patch_size"] ** 2 + 1) * v + v + (patches + 1) * v
    return decoder + tower + 2 * 4 * v + 4 * v * width + width + width * width + width


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_as_many_as_were_published(name):
    counted = counted_by_hand(preset_config(name)) / 1e9
    assert abs(counted - PRESETS[name].billions) <= 0.0101  # published with two digits, or 38.4


@pytest.mark.parametrize("name", PRESETS)
def test_tables_and_the_estimate_count_the_same(name):
    config = preset_config(name)
    model = InternVLConfig.from_hf(config, name)
    tensors = mapping_table(model).tensors
    stored = sum(_size(mapping.shape) for mapping in tensors)
    assert stored_parameters(model) == stored == counted_by_hand(config)


def _size(shape):
    count = 1
    for side in shape:
        count *= side
    return count


def test_totals_that_are_known_to_the_last_parameter():
    """These stand on the hub; that of InternVL3.5-1B says that its embedding is not tied."""
    known = {"InternVL2-2B": 2_205_754_368, "InternVL2-8B": 8_075_365_376, "InternVL3_5-1B": 1_060_897_792}
    assert {name: counted_by_hand(preset_config(name)) for name in known} == known
    tied = preset_config("InternVL3_5-1B")
    tied["llm_config"]["tie_word_embeddings"] = True
    model = InternVLConfig.from_hf(tied)
    assert stored_parameters(model) == known["InternVL3_5-1B"] - 151_936 * 1024


def test_every_shape_is_used_and_every_preset_is_json():
    assert {preset.language for preset in PRESETS.values()} == set(LANGUAGE_SHAPES)
    assert {preset.tower for preset in PRESETS.values()} == set(TOWER_SHAPES)
    for name in PRESETS:
        config = preset_config(name)
        assert json.loads(json.dumps(config)) == config
        assert preset_config(name) is not config
    changed = preset_config("InternVL2-4B")
    changed["llm_config"]["rope_scaling"]["long_factor"][0] = 7
    assert preset_config("InternVL2-4B") != changed


def test_phi_3_has_a_factor_for_each_rotary_pair():
    llm = preset_config("InternVL2-4B")["llm_config"]
    pairs = llm["hidden_size"] // llm["num_attention_heads"] // 2
    factors = llm["rope_scaling"]["long_factor"], llm["rope_scaling"]["short_factor"]
    assert [len(numbers) for numbers in factors] == [pairs, pairs] == [48, 48]
    assert all(list(numbers) == sorted(numbers) for numbers in factors)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("OpenGVLab/InternVL3-8B", "InternVL3-8B"),
        ("internvl3.5-38b", "InternVL3_5-38B"),
        ("InternVL2-Llama3-76B", "InternVL2-76B"),
    ],
)
def test_names_as_people_write_them(written, meant):
    assert preset_named(written) == meant


def test_a_name_that_is_not_known():
    with pytest.raises(ConfigError, match="preset 'InternVL3-7B' is not known; did you mean InternVL3-78B"):
        preset_named("InternVL3-7B")


@pytest.mark.parametrize("name", PRESETS)
def test_reduced_keeps_what_decides_names_and_order(name):
    whole, small = preset_config(name), reduced(preset_config(name))
    model, real = InternVLConfig.from_hf(small, name), InternVLConfig.from_hf(whole, name)
    assert stored_parameters(model) < 2_000_000
    for flag in ("architecture", "qkv_bias", "qk_layernorm", "tie_word_embeddings"):
        assert getattr(model.llm, flag) == getattr(real.llm, flag)
    assert model.llm.num_attention_heads // model.llm.num_query_groups == (
        real.llm.num_attention_heads // real.llm.num_query_groups
    )
    assert (model.llm.query_size == model.llm.hidden_size) == (real.llm.query_size == real.llm.hidden_size)
    assert model.llm.rope.scaling.kind == real.llm.rope.scaling.kind
    assert (model.vision.norm_type, model.vision.qk_normalization) == (
        *(real.vision.norm_type, real.vision.qk_normalization),
    )

    def names(of):
        return {mapping.name for mapping in mapping_table(of).tensors}

    assert names(model) < names(real)
