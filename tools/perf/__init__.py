"""Benchmarks, found by file: every module here has a DESCRIPTION and `run(argv) -> dict`, and is called by its name.

What `run` returns is printed by tools/benchmark.py and written as JSON: numbers and words become lines, a list of
dictionaries with the same keys becomes a table.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """Import one benchmark."""
    return importlib.import_module(f"{__name__}.{name}")
