"""What `setup.py` allows, `constraints.txt` pins, the set-up script accepts and the README promises: one thing."""

from __future__ import annotations

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def metadata():
    """The arguments `setup.py` hands to setuptools."""
    handed: dict = {}
    stand_in = types.ModuleType("setuptools")
    vars(stand_in).update(setup=handed.update, find_packages=lambda **_: [])
    before = sys.modules.get("setuptools")
    sys.modules["setuptools"] = stand_in
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        if before is None:
            del sys.modules["setuptools"]
        else:
            sys.modules["setuptools"] = before
    return handed


@pytest.fixture(scope="module")
def required(metadata):
    """Name -> versions allowed, of the package and the extras CI installs."""
    lines = list(metadata["install_requires"])
    for extra in ("test", "dev", "docs", "video", "eval", "meteor"):
        lines += metadata["extras_require"][extra]
    return {requirement.name.lower(): requirement.specifier for requirement in map(Requirement, lines)}


def supported(metadata) -> list[str]:
    """The Python versions in the range of `python_requires`."""
    allowed = SpecifierSet(metadata["python_requires"])
    return [f"3.{minor}" for minor in range(40) if f"3.{minor}" in allowed]


def test_every_pin_lies_in_its_range(required):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    shared = [pin for pin in pins if pin.name.lower() in required]
    assert len(shared) > 25
    for pin in shared:
        (version,) = pin.specifier
        assert version.version in required[pin.name.lower()], f"{pin}: setup.py allows {required[pin.name.lower()]}"


@pytest.mark.parametrize(
    ("name", "version", "allowed"),
    [
        # Refuses InternVL2's tokenizer: "piece must not include null character".
        ("sentencepiece", "0.2.2", False),
        ("sentencepiece", "0.2.3", True),
        ("megatron-core", "0.16.1", True),
        ("megatron-core", "0.16.0", False),
        ("megatron-core", "0.19.2", True),
        ("megatron-core", "0.20.0", False),
        ("torch", "2.11.0", True),
        ("torch", "2.13.0", True),
    ],
)
def test_what_was_tried_is_what_is_allowed(required, name, version, allowed):
    assert (version in required[name]) == allowed


def test_megatron_core_finds_triton_where_it_needs_it(metadata):
    """From 0.18 on it imports triton, and pip takes those releases from Python 3.12 on."""
    (triton,) = (line for line in map(Requirement, metadata["install_requires"]) if line.name == "triton")
    assert triton.marker is not None
    for version, wanted in (("3.10", False), ("3.11", False), ("3.12", True), ("3.13", True)):
        environment = {**default_environment(), "python_version": version, "platform_system": "Linux"}
        assert triton.marker.evaluate(environment) == wanted


def test_python_versions_are_told_alike(metadata):
    versions = supported(metadata)
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata["classifiers"]))
    assert named == versions
    script = (ROOT / "scripts" / "setup_venv.sh").read_text()
    first, last = (f"({version.replace('.', ', ')})" for version in (versions[0], versions[-1]))
    assert f"not {first} <= sys.version_info[:2] <= {last}" in script
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / page).read_text(), page


def test_the_readmes_table_stays_in_the_ranges(metadata, required):
    """Each row of the support matrix is a set that may be installed."""
    rows = re.findall(r"^\| (3\.\d+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 1
    for python, core, torch in rows:
        assert python in supported(metadata)
        assert core in required["megatron-core"] and torch in required["torch"], (python, core, torch)
    pinned = (ROOT / "constraints.txt").read_text()
    assert any(f"megatron-core=={core}\n" in pinned and f"torch=={torch}\n" in pinned for _, core, torch in rows)
