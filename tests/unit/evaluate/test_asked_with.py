"""Answers of one folder are asked with one template and one kind of tiles, also across versions of this program."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.generate.prompt import asked_with
from megatron_v2pe.models.config import InternVLConfig


def model(golden, **changes):
    config = json.loads((golden / "reference_checkpoint" / "config.json").read_text())
    return InternVLConfig.from_hf({**config, **changes})


@pytest.mark.parametrize(
    ("changes", "tiles"),
    [
        ({}, "1 to 6, thumbnail"),
        ({"dynamic_image_size": False, "use_thumbnail": True}, "1"),
        ({"dynamic_image_size": False, "pad2square": True}, "1, padded to a square"),
        ({"pad2square": True, "use_thumbnail": False}, "1 to 6"),
        ({"dynamic_max_patch": True, "min_dynamic_patch": 2}, "2 to 6, thumbnail, shared"),
    ],
)
def test_tiles_in_words(golden, changes, tiles):
    assert asked_with(model(golden, **changes))["tiles"] == tiles


def test_answers_of_an_older_version_go_on_only_as_they_were_asked(golden, tmp_path):
    older = asked_with(model(golden))
    settle(tmp_path, {"checkpoint": "x"})
    settle(tmp_path, {"checkpoint": "x", **older}, assumed=older)
    changed = asked_with(model(golden, dynamic_image_size=False))
    with pytest.raises(ConfigError, match="tiles 1 to 6, thumbnail there, 1 now"):
        settle(tmp_path, {"checkpoint": "x", **changed}, assumed=older)
