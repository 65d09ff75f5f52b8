"""Settings: files, types, misspelt keys, combinations that cannot run."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from inspect import getsource

import pytest

from megatron_v2pe.base import config_tree
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.recipes.internvl2_2b import internvl2_2b_v2pe_32k
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train.config import AdamWConfig, ExperimentConfig, ModelConfig, TrainConfig
from megatron_v2pe.v2pe.settings import V2PESettings


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_configuration_reads_back_equal(name, tmp_path):
    config = RECIPES[name]()
    config.save(tmp_path / "config.yaml")
    assert ExperimentConfig.load(tmp_path / "config.yaml") == config


def test_yaml_values_become_the_declared_types(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "optimizer: {lr: 5e-6, clip_grad: 1}\n"  # YAML itself reads 5e-6 as text
        "v2pe: {rope_pos_id_version: v2pe_fix, rope_pos_id_stride: 64, strides: [1, 1/2]}\n"
        "train: {exit_step: null, train_steps: 20000.0}\n"
    )
    config = ExperimentConfig.load(path)
    assert (config.optimizer.lr, config.optimizer.clip_grad) == (5e-6, 1.0)
    assert (config.v2pe.rope_pos_id_stride, config.v2pe.strides) == ("64", ("1", "1/2"))
    assert config.train.train_steps == 20000 and isinstance(config.train.train_steps, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: {lr: 1}", r"unknown key 'optimiser'; did you mean optimizer\?"),
        ("train: {train_step: 1}", r"unknown key 'train.train_step'; did you mean train.train_steps"),
        ("v2pe: {rope_pos_id_verson: default}", r"did you mean v2pe.rope_pos_id_version"),
        ("optimizer: {lr: fast}", r"optimizer.lr is 'fast', expected a number"),
        ("train: {train_steps: 1.5}", r"train.train_steps is 1.5, expected a whole number"),
        ("train: {precision: fp16}", r"train.precision is 'fp16', expected one of bf16, fp32"),
        ("model: {freeze_llm: 3}", r"model.freeze_llm is 3, expected true or false"),
        ("optimizer: 3", r"optimizer is a section of settings, got 3"),
        ("[1, 2]", r"holds a list, expected a mapping"),
        ("train: {seed: [}", r"not valid YAML.*line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="(?s)run.yaml.*" + message):
        ExperimentConfig.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read"):
        ExperimentConfig.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (V2PESettings(rope_pos_id_version="v2pe_fix"), "rope_pos_id_stride is missing"),
        (
            V2PESettings(rope_pos_id_version="v2pe_rnd", rope_pos_id_stride="64"),
            "64 .*v2pe_rnd, which uses none",
        ),
        (V2PESettings(rope_pos_id_version="v2pe_fix", rope_pos_id_stride="0"), "0"),
        (V2PESettings(rope_pos_id_version="v2pe_rnd", strides=()), "strides is empty"),
        (V2PESettings(rope_pos_id_version="v2pe_rnd", strides=("4", "-1")), "-1"),
        (ModelConfig(), "model_name_or_path is empty"),
        (ModelConfig("m", drop_path_rate=1.0), "drop_path_rate is 1.0"),
        (ModelConfig("m", freeze_llm=True, freeze_backbone=True, freeze_mlp=True), "nothing would learn"),
        (ModelConfig("m", unfreeze_vit_layers=-2), "-2 without model.freeze_backbone"),
        (AdamWConfig(lr=0.0), "optimizer.lr is 0.0"),
        (AdamWConfig(lr=1e-6, min_lr=1e-5), "min_lr is 1e-05.*1e-06"),
        (AdamWConfig(lr=float("nan")), "optimizer.lr is nan"),
        (AdamWConfig(warmup_ratio=1.5), "warmup_ratio is 1.5"),
        (AdamWConfig(adam_beta2=1.0), "adam_beta2 is 1.0"),
        (AdamWConfig(clip_grad=-1.0), "clip_grad is -1.0, expected between 0 and 1000000"),
        (TrainConfig(train_steps=0), "train_steps is 0, expected between 1 and 1000000000"),
        (
            TrainConfig(recompute_method=None),
            "recompute_method and recompute_num_layers, they are None and 1",
        ),
    ],
)
def test_combinations_that_cannot_run(part, message):
    with pytest.raises(ValueError, match=message):
        part.validate()


def test_packs_per_step():
    assert TrainConfig().micro_batches(4) == 1
    assert TrainConfig(gradient_accumulation_steps=3).micro_batches(4) == 3
    assert TrainConfig(global_batch_size=32).micro_batches(4) == 8
    assert TrainConfig(global_batch_size=32, gradient_accumulation_steps=8).micro_batches(4) == 8
    with pytest.raises(ConfigError, match="global_batch_size 32 is no multiple of data parallel size 5"):
        TrainConfig(global_batch_size=32).micro_batches(5)
    with pytest.raises(ConfigError, match="32 is not data parallel size 4 x gradient_accumulation_steps 2 = 8"):
        TrainConfig(global_batch_size=32, gradient_accumulation_steps=2).micro_batches(4)


@pytest.mark.parametrize(("ratio", "steps", "expected"), [(0.03, 20000, 600), (0.03, 50, 2), (0.0, 9, 0), (1, 7, 7)])
def test_warmup_is_the_ratio_rounded_up(ratio, steps, expected):
    assert AdamWConfig(warmup_ratio=ratio).steps_of_warmup(steps) == expected


def test_the_world_is_checked_with_the_whole_configuration():
    config = RECIPES["internvl2_2b_v2pe_256k"]()
    config.validate(world_size=32)
    with pytest.raises(ConfigError, match="world size 12"):
        config.validate(world_size=12)
    with pytest.raises(ConfigError, match="global_batch_size 4 is no multiple of data parallel size 8"):
        config.validate(world_size=64)


def test_a_document_that_cannot_be_padded_within_a_pack_is_refused():
    config = RECIPES["long_context"]()
    config.updated({"data": {"max_seq_length": 8189}}, "test").validate(2)
    wrong = config.updated({"data": {"max_packed_tokens": 8190, "max_seq_length": 8189}}, "test")
    message = "max_seq_length 8189 padded to a multiple of 4 .* is 8192, above data.max_packed_tokens 8190; take 8188"
    with pytest.raises(ConfigError, match=message):
        wrong.validate(2)


def test_every_setting_is_documented():
    def walk(config):
        source = "".join(getsource(kind) for kind in type(config).__mro__ if is_dataclass(kind))
        for item in fields(config):
            after = source.split(f"    {item.name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), f"{type(config).__name__}.{item.name} has no docstring"
            if is_dataclass(getattr(config, item.name)):
                walk(getattr(config, item.name))

    walk(ExperimentConfig())


def test_set_path_hints_at_the_section_a_setting_is_in():
    with pytest.raises(ConfigError, match=r"unknown setting 'train.lr'; did you mean optimizer.lr\?"):
        config_tree.set_path(ExperimentConfig(), "train.lr", "1", "here")


def test_configurations_cannot_be_changed_in_place():
    config = ExperimentConfig()
    with pytest.raises(AttributeError):
        config.train.seed = 1
    assert replace(config.train, seed=1).seed == 1


@pytest.mark.parametrize("kind", ["auto", "full", "none"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recompute_granularity", None),
        ("recompute_method", "block"),
        ("recompute_num_layers", 2),
        ("recompute_attention", False),
        ("recompute_vision", False),
    ],
)
def test_settings_that_would_not_count_are_refused(kind, name, value):
    train = TrainConfig(recompute=kind, **{name: value})
    with pytest.raises(ConfigError, match=rf"train.{name} is {value}, but train.recompute {kind} decides"):
        train.validate()
    TrainConfig(**{name: value}).validate()  # stated, the default
    TrainConfig(recompute=kind).validate()


@pytest.mark.parametrize(
    ("train", "parallel", "message"),
    [
        ({"precision": "fp32"}, {}, "they are fp32 and True"),
        ({}, {"use_distributed_optimizer": False}, "they are bf16 and False"),
        ({"device": "cpu"}, {}, "train.device is cpu"),
    ],
)
def test_offload_of_the_optimizer_needs_a_gpu_bf16_and_shards(train, parallel, message):
    config = internvl2_2b_v2pe_32k()
    config = replace(config, optimizer=replace(config.optimizer, optimizer_cpu_offload=True))
    config.validate()
    config = replace(config, train=replace(config.train, **train), parallel=replace(config.parallel, **parallel))
    with pytest.raises(ConfigError, match=message):
        config.validate()
