"""Rules about imports and the environment that the import linter cannot express."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megatron_v2pe"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAUNCHER = re.compile(r"(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT|SLURM_\w+)")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["data", "v2pe"])
def test_no_ranks_where_samples_and_positions_are_made(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        ranks = [name for name in imported(path) if name.startswith(("torch.distributed", "megatron.core"))]
        assert not ranks, f"{path.relative_to(PACKAGE)} imports {ranks}"


def test_megatron_core_is_imported_in_the_layers_that_stand_on_it_only():
    allowed = {"device", "parallel", "models", "checkpoint", "train", "generate", "testing", "convert"}
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] not in allowed:
            assert not [name for name in imported(path) if name.startswith("megatron.core")], path


def test_only_the_launcher_reads_the_launchers_variables():
    for path in MODULES:
        if path in (PACKAGE / "device" / "launch.py", PACKAGE / "orphans.py") or PACKAGE / "testing" in path.parents:
            continue  # testing plays the launcher; orphans only looks whether there is one, before PyTorch is imported
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and LAUNCHER.fullmatch(node.value)
        ]
        assert not texts, f"{path.relative_to(PACKAGE)} names {texts}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_opens_with_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
