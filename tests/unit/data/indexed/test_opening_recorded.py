"""An indexed data set records how its pictures are opened, and is not trained on as if they were opened otherwise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from helpers.data_cases import Case
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_operations import Opening
from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.errors import ConfigError


def with_entry(case: Case, **fields) -> Case:
    """The same data list, its second data set with other fields."""
    lists = json.loads(case.meta.read_text())
    lists["more"] |= fields
    meta = case.meta.with_name("-".join(fields) + ".json")
    meta.write_text(json.dumps(lists))
    encoder: DocumentEncoder = replace(case.encoder, config=replace(case.encoder.config, meta_path=str(meta)))
    return Case(meta, encoder)


def test_a_set_says_how_pictures_are_opened_where_it_is_not_as_published(case, tmp_path):
    usual, white = case.build(tmp_path / "usual"), with_entry(case, transparency="white").build(tmp_path / "white")
    content = json.loads((tmp_path / "usual" / "manifest.json").read_text())
    assert not any("opening" in entry for entry in content["datasets"]), "sets are what they were"
    assert [entry.opening for entry in Manifest.read(tmp_path / "white").datasets] == [Opening(), Opening("white")]
    assert usual.manifest.lengths_sha256 != white.manifest.lengths_sha256, "a run cannot go on from one to the other"
    openings = {Opening.of(item.operations) for number in range(len(white)) for item in white[number].media}
    assert openings == {Opening(), Opening("white")}


@pytest.mark.parametrize("field", [{"transparency": "black"}, {"exif_rotation": True}])
def test_a_data_list_that_says_otherwise_is_refused(case, tmp_path, field):
    samples, other = case.build(tmp_path / "set"), with_entry(case, **field)
    IndexedPlan(samples, case.encoder.config, 0, SkipLog(0))
    with pytest.raises(ConfigError, match=r"'more': transparency '\w+', exif_rotation \w+; .* was built with .*again"):
        IndexedPlan(samples, other.encoder.config, 0, SkipLog(0))
    with pytest.raises(ConfigError, match="built with other settings"):
        other.build(tmp_path / "set")
    IndexedPlan(other.build(tmp_path / "other"), other.encoder.config, 0, SkipLog(0))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"transparency": "grey"}, "transparency: found the text 'grey', expected one of drop, white, black"),
        ({"transparency": None}, "transparency: found"),
        ({"exif_rotation": "yes"}, "exif_rotation: found"),
        ({"exif_rotation": 1}, "exif_rotation: found"),
    ],
)
def test_settings_of_another_kind_are_refused(case, tmp_path, field, message):
    with pytest.raises(ConfigError, match=message):
        with_entry(case, **field).build(tmp_path / "set")
