"""Families are found by folder: ours, those of the environment variable; what is wrong with one is named."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import EntryPoint

import pytest

from megatron_v2pe.base import plugins
from megatron_v2pe.base.plugins import FAMILIES, GROUP, VARIABLE, Registry
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


def test_a_failure_names_the_file_and_the_line(family, colours):
    folder = family("family_c", "def fails():\n    return 1 / 0\n\n\nfails()\n")
    with pytest.raises(
        ConfigError, match=f"family family_c: colour.py fails: ZeroDivisionError: .*, at {folder}/colour.py:2$"
    ):
        colours.names()


def test_a_syntax_error_names_the_file_and_the_line(family, colours):
    folder = family("family_d", "x = 1\ndef (:\n")
    with pytest.raises(
        ConfigError, match=f"family family_d: colour.py fails: SyntaxError: .*, at {folder}/colour.py:2$"
    ):
        colours.names()


@pytest.mark.parametrize(("text", "init"), [("raise SystemExit(0)", ""), ("", "raise SystemExit(0)")])
def test_a_file_that_ends_the_program_is_named(family, colours, text, init):
    family("family_e", text, init)
    with pytest.raises(ConfigError, match=r"family_e.*SystemExit"):
        colours.names()


def test_a_name_that_cannot_be_imported_is_refused_with_another(family, colours):
    family("family-f", "")
    with pytest.raises(ConfigError, match="family-f: a folder of this name cannot be imported; .*such as 'family_f'"):
        colours.names()


def test_two_folders_of_one_name_are_both_named(family, colours, tmp_path, monkeypatch):
    first, second = family("family_g", ""), tmp_path / "elsewhere" / "family_g"
    second.mkdir(parents=True)
    (second / "__init__.py").touch()
    monkeypatch.setenv(VARIABLE, f"{first}{os.pathsep}{second}")
    with pytest.raises(ConfigError, match=f"{second}: a package named family_g is there already .{first}/__init__.py."):
        colours.names()


def test_empty_parts_and_a_folder_named_twice_are_let_pass(family, colours, monkeypatch):
    folder = family("family_h", "from colours_of_test import COLOURS\nCOLOURS.add('red', 1)\n")
    monkeypatch.setenv(VARIABLE, f"{os.pathsep}{folder}/{os.pathsep}{folder}{os.pathsep}")
    assert colours.names() == ("red",)


def test_an_entry_point_is_a_family(tmp_path, colours, monkeypatch):
    folder = tmp_path / "family_i"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "colour.py").write_text("from colours_of_test import COLOURS\nCOLOURS.add('blue', 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = (EntryPoint("i", "family_i", GROUP),)
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == GROUP else ())
    monkeypatch.setattr(plugins, "_installed", cache(plugins._installed.__wrapped__))
    assert colours.names() == ("blue",)
