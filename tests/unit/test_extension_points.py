"""Do the two lists of what a plug-in may add say what the code has? And does the index of the helpers name them all?"""

from __future__ import annotations

import re
from pathlib import Path

import helpers
from megatron_v2pe.base import plugins

ROOT = Path(__file__).parents[2]
_REGISTRY = re.compile(r"^([A-Z_]+)(?:: [^=\n]+)? = (?:Registry|BenchmarkRegistry)\(", re.MULTILINE)
_ROW = re.compile(r"^\| (`\w+\.py`(?:, `\w+\.py`)*) \|.*$", re.MULTILINE)
_PLACE = re.compile(r"((?:`[A-Z_]+`(?:, )?)+) in `([\w/]+\.py)`")


def rows(text: str) -> dict[str, set[str]]:
    """Return the registries of each file of a folder, as a table has them: `PATH: NAME`."""
    found: dict[str, set[str]] = {}
    for row in _ROW.finditer(text):
        places = {
            f"{path}: {name}" for names, path in _PLACE.findall(row.group(0)) for name in re.findall(r"[A-Z_]+", names)
        }
        for file in re.findall(r"\w+\.py", row.group(1)):
            found.setdefault(file, set()).update(places)
    return found


def registries() -> set[str]:
    """Return all registries of the package, by their files."""
    package = ROOT / "megatron_v2pe"
    return {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in package.rglob("*.py")
        for name in _REGISTRY.findall(path.read_text(encoding="utf-8"))
    }


def test_the_page_and_the_docstring_name_every_registry_and_no_other():
    page = rows((ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    docstring = rows(plugins.__doc__ or "")
    assert page.keys() == docstring.keys()
    assert set().union(*page.values()) == set().union(*docstring.values()) == registries()


def test_tests_that_the_page_names_are_there():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert named and all((ROOT / path).is_file() for path in named)


def test_the_index_of_helpers_has_every_module():
    folder = ROOT / "tests" / "helpers"
    files = {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")} - {"__init__.py"}
    there = sorted(name.removesuffix(".py") for name in files)
    assert re.findall(r"^\| `(\w+)` \|", helpers.__doc__ or "", re.MULTILINE) == there
