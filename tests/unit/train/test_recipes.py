"""The 32K recipes hold the numbers of the published scripts; the 256K one says that it is reconstructed."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from megatron_v2pe.base.config_tree import leaf_paths
from megatron_v2pe.recipes import internvl2_2b
from megatron_v2pe.recipes.registry import RECIPES

PUBLISHED = {
    # precision, optimiser, learning rate
    "train.precision": "bf16",
    "parallel.use_distributed_optimizer": True,
    "optimizer.adam_beta1": 0.9,
    "optimizer.adam_beta2": 0.999,
    "optimizer.adam_eps": 1e-8,
    "optimizer.lr": 5e-6,
    "optimizer.min_lr": 0.0,
    "optimizer.lr_decay_style": "cosine",
    "optimizer.warmup_ratio": 0.03,
    "train.train_steps": 20000,
    "optimizer.weight_decay": 0.05,
    "optimizer.weight_decay_on_all": True,
    "optimizer.clip_grad": 1.0,
    # 32 packs per step
    "train.global_batch_size": 32,
    "train.gradient_accumulation_steps": None,
    # packing
    "data.num_images_expected": 135,
    "data.max_packed_tokens": 34000,
    "data.max_buffer_size": 20,
    "data.max_seq_length": 34000,
    "data.loss_reduction": "square",
    # images
    "data.force_image_size": 448,
    "model.down_sample_ratio": 0.5,
    "model.ps_version": "v2",
    "data.dynamic_image_size": True,
    "data.dynamic_max_patch": False,
    "data.use_thumbnail": True,
    "data.min_dynamic_patch": 1,
    "data.max_dynamic_patch": 12,
    "data.pad2square": False,
    "data.template": "internlm2-chat",
    # what learns
    "model.freeze_llm": False,
    "model.freeze_backbone": False,
    "model.freeze_mlp": False,
    "model.drop_path_rate": 0.1,
    "model.vision_select_layer": -1,
    # the rest
    "data.num_workers": 3,
    "checkpoint.save_interval": 2500,
    "checkpoint.keep_latest": 5,
    "logging.log_interval": 1,
    "logging.tensorboard": True,
    "train.seed": 42,
    "parallel.context_parallel_size": 1,
}


def flat(config):
    values = {}
    for path in leaf_paths(config):
        value = config
        for part in path.split("."):
            value = getattr(value, part)
        values[path] = value
    return values


@pytest.mark.parametrize(
    ("name", "version"), [("internvl2_2b_baseline_32k", "default"), ("internvl2_2b_v2pe_32k", "v2pe_rnd")]
)
def test_published_hyperparameters(name, version):
    values = flat(RECIPES[name]())
    assert {path: values[path] for path in PUBLISHED} == PUBLISHED
    assert values["v2pe.rope_pos_id_version"] == version
    assert values["train.recompute"] == "auto"  # the published runs recomputed all: the same numbers, slower
    assert values["v2pe.strides"] == ("1", "2", "4", "8", "16", "32", "64", "128", "256")


def test_warm_up_takes_600_steps_and_32_processes_hold_one_pack_each():
    config = RECIPES["internvl2_2b_v2pe_32k"]()
    assert config.optimizer.steps_of_warmup(config.train.train_steps) == 600
    assert config.train.micro_batches(config.parallel.data_parallel_size(32)) == 1


def test_the_two_32k_runs_differ_in_the_positions_and_the_folder_alone():
    baseline, v2pe = flat(RECIPES["internvl2_2b_baseline_32k"]()), flat(RECIPES["internvl2_2b_v2pe_32k"]())
    differing = {path for path in baseline if baseline[path] != v2pe[path]}
    assert differing == {"v2pe.rope_pos_id_version", "checkpoint.save"}


def test_the_256k_recipe_states_what_it_is_and_keeps_what_was_published():
    assert "RECONSTRUCTED" in (internvl2_2b.internvl2_2b_v2pe_256k.__doc__ or "")
    config = RECIPES["internvl2_2b_v2pe_256k"]()
    assert config.parallel.context_parallel_size == 8
    assert config.data.max_packed_tokens == config.data.max_seq_length == 262144
    assert config.train.micro_batches(config.parallel.data_parallel_size(32)) == 1
    short, long = flat(RECIPES["internvl2_2b_v2pe_32k"]()), flat(config)
    assert {path for path in short if short[path] != long[path]} == {
        "model.model_name_or_path",
        "data.meta_path",
        "data.max_seq_length",
        "data.max_packed_tokens",
        "data.num_images_expected",
        "parallel.context_parallel_size",
        "train.train_steps",
        "train.global_batch_size",
        "checkpoint.save",
        "checkpoint.save_interval",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_documented(name):
    config = RECIPES[name]()
    config.validate(world_size=config.parallel.model_parallel_size)
    assert RECIPES[name].__doc__
    assert asdict(config) == asdict(RECIPES[name]())
