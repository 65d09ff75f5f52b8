"""The script that tests a set of versions: what it installs and in which order, and the line it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL = shutil.which("dash") or "sh"

INTERPRETER = """#!/bin/sh
echo "$*" >>"{log}"
case "$*" in
    *"-m pip"*"cannot"*) echo "no such version"; exit 1 ;;
    *"-m pytest"*) echo "{closing}"; exit {status} ;;
    *platform*) echo "Python 3.12.1, megatron-core 0.19.2, torch 2.13.0, CPU" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Run the script with a stand-in for the interpreter of its environment."""
    python, log = tmp_path / "environment" / "bin" / "python", tmp_path / "calls"
    python.parent.mkdir(parents=True)

    def run(*arguments: str, closing: str = "12 passed, 1 skipped in 3.21s", status: int = 0):
        python.write_text(INTERPRETER.format(log=log, closing=closing, status=status))
        python.chmod(0o755)
        done = subprocess.run(
            [SHELL, str(ROOT / "scripts" / "check_versions.sh"), *arguments],
            env={**os.environ, "ENVIRONMENT": str(tmp_path / "environment"), "TMPDIR": str(tmp_path)},
            cwd="/",
            capture_output=True,
            text=True,
        )
        return done, log.read_text().splitlines()

    return run


def test_torch_first_and_alone_then_the_set_then_the_tests(check):
    done, calls = check("python3.12", "0.19.2", "2.13.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Python 3.12.1, megatron-core 0.19.2, torch 2.13.0, CPU: 12 passed, 1 skipped in 3.21s\n"
    torch, package, removed = (call for call in calls if "-m pip" in call)
    assert torch.endswith("install torch==2.13.0 setuptools>=77")
    assert package.endswith("/tree[test,video]") and "-c " in package
    assert "uninstall" in removed
    (tests,) = (call for call in calls if "-m pytest" in call)
    for name in (
        "unit/models",
        "unit/parallel",
        "unit/device",
        "unit/train",
        "test_parity.py",
        "test_checkpoint_store",
    ):
        assert name in tests


def test_versions_default_to_the_pinned_ones(check):
    _, calls = check()
    pinned = (ROOT / "constraints.txt").read_text()
    (version,) = (line.removeprefix("torch==") for line in pinned.splitlines() if line.startswith("torch=="))
    assert f"install torch=={version} " in calls[0]


def test_named_tests_alone(check):
    _, calls = check("python3.12", "0.19.2", "2.13.0", "tests/unit/device", "-x")
    (tests,) = (call for call in calls if "-m pytest" in call)
    assert tests.endswith("tests/unit/device -x")


def test_a_failure_is_told_and_ends_with_its_status(check):
    done, _ = check("python3.12", "0.19.2", "2.13.0", closing="1 failed, 11 passed in 3.21s", status=1)
    assert done.returncode == 1 and done.stdout.endswith("CPU: 1 failed, 11 passed in 3.21s\n")


def test_a_set_that_cannot_be_installed(check):
    done, calls = check("python3.12", "0.19.2", "cannot")
    assert done.returncode == 1 and "torch cannot: torch could not be installed" in done.stdout
    assert "no such version" in done.stderr and not any("-m pytest" in call for call in calls)
