"""One rule for all tools: what folder a user may name for a checkpoint, and what is said of any other.

Kind of fault: a tool takes a run and another refuses it, or names a file inside it that nobody is asked to make.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pytest

from helpers.made_up_runs import make_run
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore, mcore_to_hf
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.data_tools import tokenizer_and_facts
from megatron_v2pe.train.preflight.checkpoint import check_checkpoint
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy


@pytest.fixture(scope="module")
def all_kinds(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "model"), folder / "megatron")
    make_run(folder / "megatron", folder / "run")
    os.symlink(folder / "run", folder / "link")
    return folder


NAMES = {
    "model": "model",
    "megatron": "megatron",
    "megatron/hf": "megatron",
    "run": "run/iter_0000002",
    "run/": "run/iter_0000002",
    "link": "link/iter_0000002",
    "run/iter_0000002": "run/iter_0000002",
    "run/iter_0000002/hf": "run/iter_0000002",
    "run/../run": "run/../run/iter_0000002",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_takes_it(all_kinds, tmp_path, name):
    given = f"{all_kinds}/{name}"
    place = find_checkpoint(given, "--checkpoint")
    assert place.folder == Path(f"{all_kinds}/{NAMES[name]}") and place.is_hf == (name == "model")
    config = cli.parse(["--recipe", "quickstart", f"model.model_name_or_path={given}"], RECIPES)
    check_checkpoint(config)
    tools = argparse.Namespace(tokenizer=None, tile_size=None, tokens_per_tile=None)
    assert tokenizer_and_facts(tools, config)[1].tile_size == 56
    if not place.is_hf:
        mcore_to_hf(Path(given), tmp_path / "hf")
        assert (tmp_path / "hf" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "--checkpoint .*gone: no such folder; checkpoints in .*: link, megatron, model, run"),
        ("gone/deeper", "no such folder; there is no .*gone either"),
        ("InternVL2-2B", "huggingface-cli download OpenGVLab/InternVL2-2B --local-dir .*InternVL2-2B"),
        (".", "holds neither config.json .* checkpoints in .*: link, megatron, model, run"),
        ("model/config.json", "a file, expected the folder of a checkpoint: .*/model?"),
        ("run/latest_checkpointed_iteration.txt", "a file, expected the folder of a checkpoint: .*/run?"),
    ],
)
def test_any_other_folder_is_told_what_to_name_instead(all_kinds, name, message):
    with pytest.raises(ConfigError, match=message):
        find_checkpoint(all_kinds / name, "--checkpoint")


def test_a_run_that_saved_nothing(tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has saved nothing yet"):
        find_checkpoint(tmp_path / "run", "--checkpoint")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("7\n")
    with pytest.raises(CheckpointError, match="names iteration 7"):
        find_checkpoint(tmp_path / "run", "--checkpoint")


def test_two_checkpoints_in_one_folder_are_both_named(all_kinds, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(all_kinds / "run", both)
    (both / "config.json").write_bytes((all_kinds / "model" / "config.json").read_bytes())
    assert find_checkpoint(both, "--checkpoint").folder == both / "iter_0000002"  # a configuration is no checkpoint
    (both / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"both config\.json with weights .* and iter_0000002"):
        find_checkpoint(both, "--checkpoint")
