"""The state of a loader inside a checkpoint: of its types and in its ranges, or refused by field."""

from __future__ import annotations

import pytest

from megatron_v2pe.data.indexed.plan import IndexedPlanState
from megatron_v2pe.data.pack_plan import PackPlanState
from megatron_v2pe.errors import CheckpointError, ConfigError

LIST = {"position": 7, "open": [[3, 5], [6]], "skipped": {"no such image": 2}, "mixture": {"seed": 1}}
INDEXED = {"epoch": 1, "packs": 4, "skipped": {}, "plan": {"lengths": "ab"}}


def test_what_a_loader_writes_is_read():
    assert PackPlanState.read(LIST).open == ((3, 5), (6,))
    assert IndexedPlanState.read(INDEXED).packs == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": -1}, "position: found -1"),
        ({"position": 7.5}, "position: found 7.5"),
        ({"position": None}, "position: found null"),
        ({"open": None}, "open: found null"),
        ({"open": [3]}, r"open\[0\]: found 3"),
        ({"open": [[3, True]]}, r"open\[0\]\[1\]: found true"),
        ({"open": [[7]]}, "expected a sample before position 7"),
        ({"skipped": {"x": -1}}, "skipped: x: found -1"),
        ({"skipped": []}, "skipped: found a list"),
    ],
    ids=str,
)
def test_an_edited_state_of_a_data_list_is_refused(change, words):
    with pytest.raises(CheckpointError, match=f"training_state.json: loader.*{words}"):
        PackPlanState.read({**LIST, **change})


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"packs": "4"}, {"plan": None}, {"skipped": None}, {"x": 1}], ids=str
)
def test_an_edited_state_of_an_indexed_set_is_refused(change):
    with pytest.raises(CheckpointError, match="training_state.json: loader"):
        IndexedPlanState.read({**INDEXED, **change})


@pytest.mark.parametrize("missing", LIST)
def test_a_missing_field_is_named(missing):
    with pytest.raises(CheckpointError, match=f"field '{missing}' is missing"):
        PackPlanState.read({name: value for name, value in LIST.items() if name != missing})


def test_the_state_of_the_other_kind_of_data_names_the_setting():
    with pytest.raises(ConfigError, match="set data.indexed_path"):
        PackPlanState.read(INDEXED)
    with pytest.raises(ConfigError, match="set data.meta_path"):
        IndexedPlanState.read(LIST)
