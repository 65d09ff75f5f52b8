"""Are the memory tables of the training guide what a dry run estimates? Each row is a run that is looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.preflight import dry_run
from megatron_v2pe.train.preflight.findings import Findings
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
BY_LENGTH = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
BY_SETTINGS = re.findall(r"^\| `(--[^`]+)` \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
CARDS = ("80", "40", "24")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(internvl2_2b_config()))
    return InternVLConfig.from_folder(folder)


def check(model, recipe, flags, ranks, cells):
    config = cli.parse_command(["--recipe", recipe, *flags.split()], RECIPES).config
    for card, stated in zip(CARDS, cells, strict=True):
        report = dry_run.report(Findings(config, model=model), ranks, card)
        totals = [float(total) for total in re.findall(r"^#   \d+ .* ([0-9.]+)   [a-z]", report, re.MULTILINE)]
        assert f"{max(totals):.1f}" == stated.removesuffix(", too much"), (flags, card)
        assert ("memory may run out" in report) == stated.endswith("too much"), (flags, card)
    return report


@pytest.mark.parametrize("row", BY_LENGTH, ids=lambda row: f"{row[0]}, shared by {row[1]}")
def test_memory_by_length(row, model):
    tokens, shared, ranks, *cells = row
    length = int(tokens.replace(",", ""))
    flags = (
        f"--data.max-seq-length {length} --data.max-packed-tokens {length} --data.num-images-expected {length // 256} "
        f"--parallel.context-parallel-size {shared}"
    )
    check(model, "internvl2_2b_v2pe_256k", flags, int(ranks), cells)


@pytest.mark.parametrize("row", BY_SETTINGS, ids=lambda row: row[0])
def test_memory_by_settings(row, model):
    flags, *cells = row
    check(model, "internvl2_2b_v2pe_32k", flags, 8, cells)


def test_the_printed_example_is_what_a_dry_run_prints(model):
    config = RECIPES["internvl2_2b_v2pe_32k"]()
    report = dry_run.report(Findings(config, model=model), 8, "40").splitlines()
    (shown,) = re.findall(r"^```text\n(# 8 ranks.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert [line for line in shown.splitlines() if line not in report] == []


def test_the_tables_are_read():
    assert len(BY_LENGTH) > 10 and len(BY_SETTINGS) > 8
