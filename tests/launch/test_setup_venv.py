"""The set-up script: what it installs and in which order, and that it does nothing when nothing is to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL = shutil.which("dash") or "sh"

INTERPRETER = """#!/bin/sh
case "$*" in
    *"-m pip"*) echo "$*" >>"{log}" ;;
    *version_info*) exit {unsupported} ;;
    *--version*) echo "Python 3.11.7" ;;
esac
"""


class Checkout:
    """A copy of what the script reads, with a stand-in for the interpreter of its .venv."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log = folder / "my checkout", folder / "pip.log"
        (self.root / "scripts").mkdir(parents=True)
        (self.root / ".venv" / "bin").mkdir(parents=True)
        for name in ("setup.py", "constraints.txt", "scripts/setup_venv.sh", "scripts/usage.sh"):
            shutil.copy(ROOT / name, self.root / name)
        self.interpreter(unsupported=0)

    def interpreter(self, unsupported: int) -> None:
        python = self.root / ".venv" / "bin" / "python"
        python.write_text(INTERPRETER.format(log=self.log, unsupported=unsupported))
        python.chmod(0o755)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the script from another folder; return its status and what it said."""
        command = [SHELL, str(self.root / "scripts" / "setup_venv.sh"), *arguments]
        done = subprocess.run(command, cwd="/", env={**os.environ, "PYTHON": ""}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def installed(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_torch_comes_first_and_alone_then_the_package_with_its_extras(checkout):
    status, said = checkout.run("test,dev")
    assert status == 0, said
    torch, package = checkout.installed()
    assert torch.endswith("torch==2.13.0 setuptools>=77")
    assert package.endswith(f"--editable {checkout.root}[dev,test]")
    assert all(f"-c {checkout.root}/constraints.txt" in line for line in (torch, package))
    assert said.count("setup:") == 4


def test_nothing_to_do_is_nothing_done(checkout):
    checkout.run("test,dev")
    checkout.installed()
    for extras in ([], ["test"], ["dev,test"]):
        assert checkout.run(*extras) == (0, "")
    assert checkout.installed() == []


def test_another_extra_is_added_to_those_there(checkout):
    checkout.run("test")
    checkout.installed()
    checkout.run("video")
    assert checkout.installed()[1].endswith("[test,video]")


def test_other_requirements_install_again(checkout):
    checkout.run("test")
    checkout.installed()
    with open(checkout.root / "constraints.txt", "a") as file:
        file.write("pytest<99\n")
    checkout.run()
    assert checkout.installed()[1].endswith("[test]")


def test_an_existing_venv_of_another_python_is_refused_and_kept(checkout):
    checkout.interpreter(unsupported=1)
    status, said = checkout.run()
    assert status == 1 and "supported are 3.10 to 3.13" in said
    assert (checkout.root / ".venv" / "bin" / "python").exists() and checkout.installed() == []
