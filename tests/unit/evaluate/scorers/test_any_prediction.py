"""Nothing a model says stops the corrected scorers, and the reference ones stop only with a reason."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megatron_v2pe.evaluate.families as families
import megatron_v2pe.evaluate.scorers as package
from megatron_v2pe.evaluate.scorer_names import SCORERS

OWN = "megatron_v2pe.evaluate.families."
ROOT = Path(package.__path__[0]).parents[2]
FAMILIES = sorted(path.parent.name for path in Path(families.__path__[0]).glob("*/scorer.py"))
TRUTHS: dict[str, list[dict[str, Any]]] = {
    name: items
    for family in FAMILIES
    for name, items in importlib.import_module(f"{families.__name__}.{family}.synthetic").SAMPLE_ITEMS.items()
}
"""Items of every scorer but for their prediction: a family states those of its scorers in its `synthetic.py`."""
WORDS = [
    "A",
    "(B)",
    "b.",
    "cat",
    "the",
    "dog",
    "3.5",
    "-1,000",
    "50%",
    "[1, 2]",
    "Yes",
    "No",
    "North",
    "none",
    "answer is",
    "$",
]
ODD = [
    "",
    " ",
    ".",
    "...",
    "\n",
    "''",
    '"',
    "()",
    "²",
    "½",
    "nan",
    "inf",
    "1e400",
    "İ",
    "ß",
    "答案是B",
    "Ｂ",
    "（Ｂ）",
    "１２．５％",
    "二",
    "نعم",
    "😀",
    "\x00",
    "\ud800",
]
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(ODD),
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS + ODD[:8]), max_size=8).map(" ".join),
)


def test_every_kind_is_tried():
    assert TRUTHS.keys() == SCORERS.keys()


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=150, deadline=None)
@given(prediction=anything)
def test_no_prediction_stops_a_scorer(name, prediction):
    scorer = SCORERS[name]
    items = [{**truth, "prediction": prediction} for truth in TRUTHS[name]]
    best = 100 if name.startswith("longvqa") else 1
    for item in items:
        corrected = scorer.judge(item, "corrected")
        assert "error" not in corrected
        assert 0 <= corrected.get("score", 0) <= best * (1 + 1e-9)
        reference = scorer.judge(item)
        assert ("error" in reference) != bool(reference.keys() & {"score", "converted", "processed", "rectified"})
    scorer.summary(items, "corrected")
    scorer.summary(items, "reference")


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("text", ["cat " * 3000, "x" * 20_000, "[" * 5000, "1," * 4000, "No. " * 4000, "1" * 5000])
def test_very_long_predictions(name, text):
    items = [{**truth, "prediction": text} for truth in TRUTHS[name]]
    SCORERS[name].summary(items, "corrected")
    if name != "milebench":  # the rouge package takes minutes
        SCORERS[name].summary(items, "reference")


@pytest.mark.parametrize("name", SCORERS)
def test_items_are_not_changed(name):
    for truth in TRUTHS[name]:
        item = {**truth, "prediction": "The cat, (B). 2"}
        before = repr(item)
        SCORERS[name].judge(item)
        SCORERS[name].judge(item, "corrected")
        assert repr(item) == before


def files_of_scorers() -> list[Path]:
    """Return the common files, each family's `scorer.py`, and what these import."""
    found = sorted(Path(package.__path__[0]).glob("*.py"))
    found += [path for path in sorted(Path(families.__path__[0]).glob("*/scorer.py"))]
    for path in found:
        for name in imported(path):
            if name.startswith(OWN) and (file := ROOT / f"{name.replace('.', '/')}.py").is_file() and file not in found:
                found.append(file)
    return found


def imported(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return names


@pytest.mark.parametrize("path", files_of_scorers(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scorers_import_nothing_but_errors_and_what_does_the_counting(path):
    allowed = {
        "megatron_v2pe.errors",
        "rapidfuzz.distance",
        "rouge",
        "english_words",
        "pycocoevalcap.meteor.meteor",
    }
    strange = [
        name
        for name in imported(path)
        if name not in allowed
        and not name.startswith("megatron_v2pe.evaluate.scorers")
        and not (name.startswith(OWN) and name.split(".")[3] == path.parent.name)
        and name.split(".")[0] not in sys.stdlib_module_names
    ]
    assert strange == []


def test_the_scorers_of_every_family_are_among_them():
    names = {path.parent.name for path in Path(families.__path__[0]).glob("*/questions.py")} - {"own"}
    assert names and names == set(FAMILIES) <= {path.parent.name for path in files_of_scorers()}
