"""Material that is not part of the repository: tests that want it skip, with a reason, where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "MEGATRON_V2PE_SHARED"
"""Environment variable naming the folder; by default `shared` beside the checkout."""


def shared_path(relative: str) -> Path:
    """Return a file or folder of the shared material, or skip the running test."""
    root = Path(os.environ.get(VARIABLE, Path(__file__).resolve().parents[3] / "shared"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"{path} is absent: it is not part of the repository (set {VARIABLE} to the folder that holds it)")
    return path
