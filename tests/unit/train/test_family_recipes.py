"""The recipes of InternVL3 and those with adapters: what docstrings and the guide say of GPUs is what is estimated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.memory import GIB, RESERVE
from megatron_v2pe.models.native_config import ORIGINAL
from megatron_v2pe.models.presets import preset_config
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.adapter_plan import plan_of
from megatron_v2pe.train.memory import MemoryBudget, shortage_foreseen
from megatron_v2pe.train.preflight.dry_run import card_bytes

NAMES = [name for name in RECIPES if name.startswith("internvl3_") or "_lora_" in name]
PAGE = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(internvl[23]_\w+)` \| (.+?) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)


def budget(name, ranks):
    config = RECIPES[name]()
    model = InternVLConfig.from_hf(preset_config(str(config.model.preset)), name)
    adapters = plan_of(config.adapter, model, ORIGINAL, config.train.seed)
    return MemoryBudget(config, model, ranks, card_bytes("80")[0], adapters)


def gib(found):
    return max((found.estimate(stage, found.plans[stage]).total + RESERVE) / GIB for stage in range(found.stages))


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_fits_the_gpus_that_are_stated(name):
    ranks, stated = re.findall(r"On (\d+) GPUs: .*?(\d+) GiB", RECIPES[name].__doc__ or "", re.DOTALL)[0]
    found = budget(name, int(ranks))
    assert round(gib(found)) == int(stated)
    assert all(shortage_foreseen(found, stage) is None for stage in range(found.stages))
    packs = found.config.parallel.data_parallel_size(int(ranks))
    assert found.config.train.micro_batches(packs) * packs == found.config.train.global_batch_size
    groups, degree = found.model.llm.num_query_groups, found.config.parallel.tensor_model_parallel_size
    assert groups % degree == 0


def test_what_else_the_docstrings_say():
    assert shortage_foreseen(budget("internvl3_38b_v2pe_32k", 8), 0) is not None
    eight = budget("internvl3_38b_v2pe_32k", 8)
    assert round(eight.estimate(0, eight.plans[0]).optimizer / GIB) == 54
    assert shortage_foreseen(budget("internvl3_38b_v2pe_32k", 16), 0) is None
    half = budget("internvl3_38b_v2pe_128k", 32)
    assert half.plans[0].decoder_layers in range(28, 37)
    weights = half.estimate(0, half.plans[0])
    assert round((weights.weights + weights.gradients) / GIB) == 27
    assert budget("internvl3_8b_v2pe_32k", 8).plans[0].decoder_layers == 0


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_report(name):
    config = RECIPES[name]()
    assert config.v2pe.rope_pos_id_version == "v2pe_rnd"
    assert config.v2pe.strides == tuple(str(2**power) for power in range(9))  # of 256 tokens a tile: 1/256 to 1


def test_the_table_of_the_guide():
    assert [row[0] for row in ROWS] == NAMES
    for name, _, ranks, packs, stated in ROWS:
        found = budget(name, int(ranks))
        assert found.config.parallel.data_parallel_size(int(ranks)) == int(packs)
        assert round(gib(found)) == int(stated)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_takes_the_preset(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ranks = {row[0]: row[2] for row in ROWS}[name]
    assert cli.main(["--recipe", name, "--dry-run", "--ranks", ranks], RECIPES) == 0
    printed = capsys.readouterr().out
    preset = RECIPES[name]().model.preset
    assert f"the published shape of {preset}" in printed and "memory of a rank" in printed
    assert "would be refused" not in printed
