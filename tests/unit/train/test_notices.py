"""A setting of ours that another one makes idle is named at the start; none of a recipe's is."""

from __future__ import annotations

import pytest

from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli

GIVEN = {
    "--data.max-padding-share 0.1 --data.pack-padding-multiple 4": [
        "data.max_padding_share",
        "data.pack_padding_multiple",
    ],
    "--data.no-balance-attention": ["data.balance_attention"],
    "--data.packing-window 7": ["data.packing_window"],
    "--v2pe.strides 1 2 --rope_pos_id_version default": ["v2pe.strides"],
    "--optimizer.min-lr 1e-6 --lr_scheduler_type constant": ["optimizer.min_lr"],
    "--train.memory-share 0.5 --train.recompute full": ["train.memory_share"],
    "--checkpoint.save None --checkpoint.save-interval 7": ["checkpoint.save_interval"],
    "--logging.wandb-project mine": ["logging.wandb_project"],
    "--train.exit-step 9 --max_steps 5": ["train.exit_step"],
    "--train.exit-step 4 --max_steps 5": [],
    "--train.exit-step 9 --num_train_epochs 2": [],
    "--data.packing-window 7 --data.indexed-path a/set": [],
    "--v2pe.strides 1 2": [],
    "--train.memory-share 0.5": [],
}


@pytest.mark.parametrize("words", GIVEN)
def test_an_idle_setting_is_named(words):
    told = cli.parse_command(["--recipe", "internvl2_2b_v2pe_32k", *words.split()], RECIPES).notices()
    assert sorted(line.partition(" ")[0] for line in told) == sorted(GIVEN[words])
    assert all(" has no effect here: " in line for line in told)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_none(name):
    for more in ([], ["--checkpoint.save", "None"]):
        assert cli.parse_command(["--recipe", name, *more], RECIPES).notices() == []
