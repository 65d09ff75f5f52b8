"""All faults of a data list are told at once: of every entry, and of every field of it."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.errors import ConfigError

LINE = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n'


def faults(folder, entries, **options):
    (folder / "a.jsonl").write_text(LINE)
    (folder / "meta.json").write_text(json.dumps(entries), **options)
    with pytest.raises(ConfigError) as refused:
        read_data_list(folder / "meta.json")
    return str(refused.value)


def test_two_missing_fields_are_told_at_once(tmp_path):
    told = faults(tmp_path, {"d": {"annotation": str(tmp_path / "a.jsonl")}})
    assert "dataset 'd': fields 'data_augment', 'repeat_time' are missing" in told
    assert 'most lists say "data_augment": false, "repeat_time": 1' in told
    assert "field 'repeat_time' is missing" in faults(
        tmp_path, {"d": {"annotation": str(tmp_path / "a.jsonl"), "data_augment": False}}
    )


def test_every_kind_of_fault_of_an_entry_is_told_at_once(tmp_path):
    entry = {"annotation": 3, "data_augment": "no", "max_dynamic_patch": 0, "typo": 1, "other": 2}
    told = faults(tmp_path, {"d": entry})
    for part in (
        "unknown fields 'typo', 'other'; expected annotation",
        "annotation: found 3, expected text",
        "data_augment: found the text 'no', expected true or false",
        "max_dynamic_patch: found 0, expected between 1 and 4096",
        "field 'repeat_time' is missing",
    ):
        assert part in told, part
    assert told.count("meta.json") == 1 and "\n" not in told


def test_the_faults_of_all_entries_are_told_at_once(tmp_path):
    fine = {"annotation": str(tmp_path / "a.jsonl"), "data_augment": False, "repeat_time": 1}
    gone, text = {**fine, "annotation": str(tmp_path / "gone.jsonl")}, {**fine, "annotation": "a.txt"}
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = {**fine, "annotation": str(tmp_path / "empty.jsonl")}
    told = faults(tmp_path, {"fine": fine, "gone": gone, "text": text, "empty": empty}).splitlines()
    assert len(told) == 3 and all(str(tmp_path / "meta.json") in line for line in told)
    assert [name for line in told for name in ("fine", "gone", "text", "empty") if f"dataset {name!r}" in line] == [
        "gone",
        "text",
        "empty",
    ]
    many = faults(tmp_path, {f"d{number}": {} for number in range(30)}).splitlines()
    assert len(many) == 21 and many[-1] == "... and 10 more data sets"
