"""Part (a): the tests that need a GPU, those marked `gpu`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from gpu_checks import PYTHON
from gpu_checks.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
MARK = "mark.gpu"


def run(device: str) -> Outcome:
    """Run every test file that names the mark; without a GPU they are collected and skip themselves."""
    outcome = Outcome()
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _asks(path)]
    command = [PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfE", *files]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = found.stdout.strip().splitlines()
    last = lines[-1] if lines else found.stderr[-500:]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    outcome.add(f"{len(files)} files", **counts)
    outcome.wrong += [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    outcome.must(found.returncode == 0, f"pytest ended with {found.returncode}: {last}")
    outcome.must(bool(files), "no test is marked gpu")
    if device == "cuda":
        outcome.must(counts.get("passed", 0) > 0, "no test ran although there is a GPU")
    else:
        outcome.remarks.append("without a GPU these tests skip themselves")
    return outcome


def _asks(path: Path) -> bool:
    return MARK in path.read_text(encoding="utf-8")
