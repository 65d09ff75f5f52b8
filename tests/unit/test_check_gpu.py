"""`scripts/check_gpu.sh`: its small forms run on the CPU, and a wrong number ends it with 1 and in words."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.tool_runs import command, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def check(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "check_gpu.sh"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **settings)


def test_every_part_runs_small_on_the_cpu(tmp_path):
    import check_gpu

    target = tmp_path / "check.json"
    line = command("tools/check_gpu.py", "--device", "cpu", "--json", str(target))
    found = run(line, tmp_path / "log", timeout=600)  # the others show that `scripts/check_gpu.sh` starts it
    assert found.status == 0, found.output
    report = json.loads(target.read_text())
    assert list(report["parts"]) == list(check_gpu.PARTS) and report["device"].startswith("cpu")
    for name, part in report["parts"].items():
        assert part["rows"] and not part["wrong"], (name, part)
        assert part["seconds"] > 0 and f"{name}: {check_gpu.PARTS[name]}" in found.output
    assert found.output.strip().endswith("all numbers hold")


def test_a_part_that_fails_or_hangs_is_told_and_the_others_run():
    found = check("layouts", "a", "--seconds", "0.5")
    assert found.returncode == 1
    assert "did not end well: not done after 0 s" in found.stdout and "2 WRONG" in found.stdout


def test_a_layout_that_is_wrong_is_seen(monkeypatch):
    from gpu_checks import layouts

    monkeypatch.setattr(layouts, "SMALL", (("CP2 ring", "with images", torch.bfloat16),))
    original = replace

    def broken(case, **changes):  # the case in a layout gets a planted break, that of one process does not
        return original(case, **changes, planted_break="zigzag_over_the_pack" if "layout" in changes else None)

    monkeypatch.setattr(layouts, "replace", broken)
    outcome = layouts.run("cpu")
    assert len(outcome.wrong) == 2 and "CP2 ring" in outcome.wrong[0] and "allowed" in outcome.wrong[0]


def test_help_has_a_command_that_works():
    found = check("--help")
    assert found.returncode == 0 and "bash scripts/check_gpu.sh" in found.stdout
    found = check("nonsense")
    assert found.returncode == 2 and "invalid choice" in found.stderr
