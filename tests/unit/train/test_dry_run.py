"""The report of a dry run: comments in valid YAML, for any number of ranks and any card, without weights or a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.memory import GIB
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.preflight import dry_run
from megatron_v2pe.train.preflight.findings import Findings
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # what recipes name is relative to it


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(internvl2_2b_config()))
    return tmp_path


def run(capsys, *arguments):
    status = cli.main(["--dry-run", *arguments], RECIPES)
    captured = capsys.readouterr()
    comments = "\n".join(line for line in captured.out.splitlines() if line.startswith("#"))
    return status, captured.out, comments, captured.err


def test_memory_packs_and_layout_stand_in_comments(capsys, folder):
    name = "internvl2_2b_v2pe_256k"
    given = ("--recipe", name, "--ranks", "32", "--card", "H100 80GB", f"model.model_name_or_path={folder}")
    status, output, comments, _ = run(capsys, *given)
    assert status == 0
    settings = yaml.safe_load(output)
    assert settings["parallel"]["context_parallel_size"] == 8 and settings["model"]["model_name_or_path"] == str(folder)
    assert "# 32 ranks: 4 data parallel x 8 context parallel (ring)\n" in comments
    assert "# the model: 2,205,754,368 parameters, all trained\n" in comments
    assert "262,144 tokens and 1,024 tiles" in comments
    assert "# a step: 4 packs, at most 1,048,576 tokens and 4,096 tiles" in comments
    (row,) = [line.split() for line in comments.splitlines() if line.startswith("#   0 ")]
    weights, gradients, optimizer, kept, working, reserve, total = map(float, row[2:9])
    assert (weights, gradients) == (4.11, 8.22) and optimizer == pytest.approx(24.65 / 32, abs=0.01)
    assert total == pytest.approx(weights + gradients + optimizer + kept + working + reserve, abs=0.05)
    assert total < 80 * 0.9


PAGE = (Path(__file__).parents[3] / "docs" / "launching.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(internvl2_2b_\w+)` \| (\d+) \| (\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]} GPUs")
def test_the_table_of_the_page_is_what_is_estimated(folder, row):
    recipe, ranks, packs, *cards = row
    config = RECIPES[recipe]()
    found = Findings(config, model=InternVLConfig.from_folder(folder))
    for card, stated in zip(("80", "40", "24"), cards, strict=True):
        report = dry_run.report(found, int(ranks), card)
        total = re.search(r"^#   0 .* ([0-9.]+)   the head$", report, re.MULTILINE)
        assert total is not None and f"{float(total[1]):.1f}" == stated.removesuffix(", too much")
        assert ("memory may run out" in report) == stated.endswith("too much")
        assert f"# a step: {packs} packs" in report


def test_every_stage_has_a_row(capsys, folder):
    given = ("--recipe", "internvl2_2b_v2pe_32k", "--ranks", "8", "--parallel.pipeline-model-parallel-size", "2")
    status, _, comments, _ = run(capsys, *given, f"model.model_name_or_path={folder}")
    assert status == 0
    assert [line[:7].split()[1] for line in comments.splitlines() if line.startswith(("#   0 ", "#   1 "))] == [
        "0",
        "1",
    ]
    assert "recompute of pipeline stage 1:" in comments


def test_without_a_config_the_settings_are_printed_all_the_same(capsys):
    status, output, comments, error = run(capsys, "--recipe", "internvl2_2b_v2pe_32k")
    assert status == 0 and error == ""
    assert "# no estimate of memory: it needs the checkpoint's config.json" in comments
    assert yaml.safe_load(output)["train"]["recompute"] == "auto"


def test_a_set_too_long_to_be_counted_has_a_lower_bound(folder, monkeypatch):
    class Samples:
        def __init__(self, path):
            self.manifest = type("Manifest", (), {"counts": {"samples": 10**7, "tokens": 10**10, "tiles": 10**6}})

    monkeypatch.setattr(dry_run, "IndexedSamples", Samples)
    config = RECIPES["internvl2_2b_v2pe_32k"]().updated({"data": {"indexed_path": "somewhere"}}, "test")
    found = Findings(config, model=InternVLConfig.from_folder(folder))
    report = dry_run.report(found, 32, "80")
    packs = -(-(10**10) // 34000)
    assert f"# an epoch: at least {packs:,} packs, {-(-packs // 32):,} steps; 20,000 steps are 2.18 epochs" in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ranks", "3"), "world size 3 is not a multiple"),
        (("--ranks", "0"), "--ranks 0: expected a whole number"),
        (("--ranks", "many"), "--ranks many: expected a whole number"),
        (("--card", "Voodoo 2"), "--card Voodoo 2: no card of that name is known; give its GiB"),
        (("--card", "0.1"), "expected GiB between 1 and 10000"),
        (("--card", "nan"), "expected GiB between 1 and 10000"),
        (("--ranks", "32", "--card", "8"), None),
    ],
)
def test_bad_input(capsys, folder, arguments, message):
    given = ("--recipe", "internvl2_2b_v2pe_256k", f"model.model_name_or_path={folder}", *arguments)
    status, output, comments, error = run(capsys, *given)
    if message is None:
        assert status == 0 and "memory may run out" in comments
    else:
        assert status == 2 and message in error and output == ""


@pytest.mark.parametrize("flag", ["ranks", "card"])
def test_plans_are_for_dry_runs(flag):
    with pytest.raises(ConfigError, match=f"--{flag} is for --dry-run"):
        cli.parse(["--recipe", "internvl2_2b_v2pe_32k", f"--{flag}", "8"], RECIPES)


def test_cards_by_size_name_and_place():
    assert dry_run.card_bytes("80")[0] == dry_run.card_bytes("NVIDIA H100 80GB HBM3")[0]
    assert dry_run.card_bytes("80")[0] == pytest.approx(79.1 * GIB, rel=0.001)
    assert dry_run.card_bytes(None, "cpu") == (None, "on the CPU")
