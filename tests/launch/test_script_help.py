"""What is `--help` of a script? Its usage with the variables it reads, status 0, and nothing is started or written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("examples/**/*.sh")])
SHELLS = [path for path in map(shutil.which, ("dash", "bash")) if path] or ["sh"]
READ_IN = ("usage.sh", "launch.sh", "steps.sh", "evaluate_launch.sh")
"""Files others read in: they are no commands."""
STARTERS = ("python", "python3", "srun", "torchrun", "pip", "nvidia-smi", "git", "mkdir", "tar", "mktemp", "flock")


@pytest.fixture
def watched(tmp_path):
    """An environment in which whatever a script starts or makes is noted instead, and the note."""
    note, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    for name in STARTERS:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{note}"\nexit 7\n')
        (folder / name).chmod(0o755)
    (tmp_path / "here").mkdir()
    return {"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin", "PYTHON": str(folder / "python")}, note


def names_itself(script: Path, text: str) -> bool:
    return re.search(rf"\S*{re.escape(script.name)}", text) is not None


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_prints_the_usage_and_starts_nothing(script, shell, watched, tmp_path):
    environment, note = watched
    for arguments in (["--help"], ["-h"], ["first", "--help"]):
        ended = subprocess.run(
            [shell, str(script), *arguments], env=environment, cwd=tmp_path / "here", capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == "" and len(ended.stdout.splitlines()) >= 3
        assert "#!" not in ended.stdout and "SBATCH" not in ended.stdout.replace("sbatch", "")
        assert script.name in READ_IN or names_itself(script, ended.stdout)
        for variable in re.findall(r"^# {3}([A-Z][A-Z_]+) {2,}", script.read_text(), re.MULTILINE):
            assert variable in ended.stdout
    assert not note.exists(), note.read_text()
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_into_a_closed_pipe_says_nothing_else(script, watched, tmp_path):
    environment, _ = watched
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        ended = subprocess.run(
            [SHELLS[0], str(script), "--help"], env=environment, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE
        )
    assert b"Traceback" not in ended.stderr and b"Exception" not in ended.stderr


def test_a_file_for_others_says_so_when_it_is_run_by_itself(watched):
    environment, note = watched
    for name in READ_IN:
        ended = subprocess.run(
            [SHELLS[0], str(ROOT / "scripts" / name)], env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 2 and ended.stdout
    assert not note.exists()
