"""Families are found by folder: ours, those of the environment variable; what is wrong with one is named."""

from __future__ import annotations

import sys

import pytest

from megatron_v2pe.base.plugins import FAMILIES, VARIABLE, Registry
from megatron_v2pe.errors import ConfigError


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Make a folder a family of its own name, known for one test."""
    made = []

    def make(name, text, init=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(init)
        (folder / "colour.py").write_text(text)
        monkeypatch.setenv(VARIABLE, str(folder))
        made.append(name)
        return folder

    yield make
    for name in made:
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]


@pytest.fixture
def colours(monkeypatch):
    """A registry that files named `colour.py` add to, found by them as `colours_of_test.COLOURS`."""
    registry = Registry("colour", FAMILIES, "colour")
    module = type(sys)("colours_of_test")
    module.COLOURS = registry
    monkeypatch.setitem(sys.modules, "colours_of_test", module)
    return registry


def test_a_folder_of_the_variable_adds_its_members(family, colours):
    assert list(colours) == [] and len(colours) == 0, "none of our families has such a file"
    text = (
        "from colours_of_test import COLOURS\nCOLOURS.add('red', 1)\n@COLOURS.register('green', 'lime')\ndef f(): ..."
    )
    family("family_a", text)
    assert list(colours) == ["red", "green", "lime"] and "red" in colours and "blue" not in colours
    assert colours["red"] == colours.get("red") == 1 and colours.find("blue") is None
    assert colours.get("green") is colours.get("lime")
    with pytest.raises(ConfigError, match=r"no colour 'gren'.*green"):
        colours.get("gren")


def test_one_name_belongs_to_one_family(colours):
    colours.add("red", "a")
    with pytest.raises(ConfigError, match="colour 'red' stands in two families; rename one of them"):
        colours.add("red", "b")


@pytest.mark.parametrize(
    ("text", "init", "message"),
    [
        ("1 / 0", "", r"family family_b: colour.py fails: ZeroDivisionError"),
        ("", "import nothing_of_this_name", r"family_b/__init__.py: ModuleNotFoundError"),
    ],
)
def test_code_that_fails_is_named_every_time(family, colours, text, init, message):
    family("family_b", text, init)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            colours.names()


def test_folders_that_are_no_families(tmp_path, colours, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=f"{VARIABLE}: .*gone: no folder of a family, which holds an __init__.py"):
        colours.names()
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "json"))
    with pytest.raises(ConfigError, match="json: a package named json is there already"):
        colours.names()
