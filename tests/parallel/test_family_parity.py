"""Every language model and both towers equal `transformers`' InternVL, in one process and in every kind of layout.

The reference (`helpers/family_reference.py`) runs every document alone; ours runs packs of several documents with
several images, and a pack of texts. Float32 on both sides. Layouts are chosen by pairs here;
`scripts/check_families.sh` runs every family in every layout.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from helpers import family_parity as families
from helpers.family_cases import FAMILIES
from megatron_v2pe.models.native_config import NATIVE
from megatron_v2pe.v2pe.settings import StridePolicy

pytest.importorskip("transformers", reason="transformers is not installed")

ONE_PROCESS = "one process"
DEFAULT = StridePolicy("default")
STRIDES = [StridePolicy("v2pe_fix", Fraction(1, 2)), StridePolicy("v2pe_fix", 64), StridePolicy("v2pe_rnd", seed=5)]
NAMES = list(FAMILIES)
CASES = [
    *((name, layout, DEFAULT) for name in NAMES for layout in (ONE_PROCESS, *families.usual_layouts(name))),
    *((name, families.one_more_layout(name), STRIDES[number % 3]) for number, name in enumerate(NAMES)),
]
BREAK_IS_SEEN_ABOVE = 1e-2


@pytest.fixture(scope="module")
def run(pools):
    """Run a family in a layout; return the errors beside the reference, which is run once for a family's positions."""
    return families.Runs(lambda world, function, **kwargs: pools[world].run(function, **kwargs)[-1])


@pytest.mark.parametrize(("name", "layout", "policy"), CASES, ids=lambda value: getattr(value, "version", value))
def test_a_step_equals_transformers(run, name, layout, policy):
    errors = run.errors(name, layout, policy)
    for what, allowed in families.TOLERANCE.items():
        assert errors[what] <= allowed, errors


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_both_layouts_give_one_state(run, name):
    native = families.full_state(FAMILIES[name].config(), run.native_weights(name), NATIVE)
    published = run.weights(name)
    assert native.keys() == published.keys()
    assert all(torch.equal(native[key], tensor) for key, tensor in published.items())


@pytest.mark.parametrize(("name", "layout", "planted_break"), families.BREAKS)
def test_a_planted_break_is_seen(run, name, layout, planted_break):
    try:
        errors = run.errors(name, layout, DEFAULT, planted_break)
    except AssertionError as error:
        assert "replicas at offset" in str(error) or "its padding is not zero" in str(error), error
    else:
        assert max(errors[what] for what in families.TOLERANCE) > BREAK_IS_SEEN_ABOVE, errors


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_those_of_transformers(run, name):
    layouts = (ONE_PROCESS, *families.generating_layouts(name))
    expected, found = run.answers(name, layouts)
    for layout, (ids, error) in found.items():
        assert ids == expected, layout
        assert error <= families.CACHE_TOLERANCE, (layout, error)
