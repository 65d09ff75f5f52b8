"""Image operations: a further one is one class in a plugin folder and its name in a data list, and no line of ours."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from helpers.data_cases import every_kind
from megatron_v2pe.data import image_operations
from megatron_v2pe.data.bad_samples import SkipLog
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_operations import (
    IMAGE_OPERATIONS,
    JpegAugmentation,
    Opening,
    PadToSquare,
    names_of,
    operations_of,
)
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.indexed.layout import Manifest
from megatron_v2pe.data.indexed.plan import IndexedPlan
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.data.mixture import Mixture
from megatron_v2pe.data.pack_plan import PackPlan
from megatron_v2pe.errors import ConfigError

PLUGIN = '''"""Darken tiles by a random amount."""
from dataclasses import dataclass
from typing import Annotated, ClassVar

from PIL import Image

from megatron_v2pe.base.keyed_random import uniform
from megatron_v2pe.data.image_operations import ImageFacts, ImageOperation, Stage, image_operation
from megatron_v2pe.foreign.schema import Range


@image_operation("darken")
@dataclass(frozen=True)
class Darken(ImageOperation):
    """Make a tile darker."""

    stage: ClassVar[Stage] = "tile"
    step: Annotated[float, Range(0.01, 0.2)] = 0.1

    def apply(self, image: Image.Image, facts: ImageFacts) -> Image.Image:
        """Return a tile of a tenth to half of its brightness."""
        share = self.step * (1 + uniform(5, *facts.key, purpose="darken"))
        return image.point(lambda value: int(value * share))
'''


@pytest.fixture
def darken(tmp_path, monkeypatch):
    """A plugin folder with one operation; gone afterwards."""
    folder = tmp_path / "plugin_of_operations"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A family of one image operation."""\n')
    (folder / "image_operations.py").write_text(PLUGIN)
    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", str(folder))
    monkeypatch.setattr(IMAGE_OPERATIONS, "_members", dict(IMAGE_OPERATIONS._members))
    monkeypatch.setattr(IMAGE_OPERATIONS, "_loaded", None)
    yield
    for name in [name for name in sys.modules if name.startswith("plugin_of_operations")]:
        del sys.modules[name]


def with_operations(case, *names):
    """The same data list, whose data sets ask for further operations."""
    entries = json.loads(case.meta.read_text())
    for entry in entries.values():
        entry["image_operations"] = list(names)
    meta = case.meta.with_name("operations.json")
    meta.write_text(json.dumps(entries))
    return replace(
        case, meta=meta, encoder=replace(case.encoder, config=replace(case.encoder.config, meta_path=str(meta)))
    )


def tiles_of(documents, open_picture=None):
    return [
        read_tiles(one.pictures, 28, (0.5,) * 3, one.key, open_picture).float() for one in documents if one.pictures
    ]


def test_a_further_operation_reaches_the_tiles_online_and_indexed(darken, tmp_path, tokenizer):
    plain = every_kind(tmp_path / "data", tokenizer)
    case = with_operations(plain, "darken")
    [usual, changed] = [
        [one.encoder.document(dataset, 0, epoch, 0) for dataset in read_data_list(one.meta) for epoch in (0, 1)]
        for one in (plain, case)
    ]
    for before, after in zip(tiles_of(usual), tiles_of(changed), strict=True):
        assert 0 < after.mean() < 0.6 * before.mean()
    first, again = tiles_of(changed), tiles_of(changed)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), "drawn by key alone"
    samples = case.build(tmp_path / "set")
    numbers = [entry.first for entry in samples.manifest.datasets]
    built = [case.encoder.draw(samples[number], epoch, 0) for number in numbers for epoch in (0, 1)]
    for online, indexed in zip(tiles_of(changed), tiles_of(built, samples.files.open_picture), strict=True):
        assert torch.equal(online, indexed)


def test_a_set_notes_further_operations_only_where_there_are_some(darken, tmp_path, tokenizer):
    plain = every_kind(tmp_path / "data", tokenizer)
    case = with_operations(plain, "darken")
    usual, other = plain.build(tmp_path / "usual").manifest, case.build(tmp_path / "other").manifest
    assert "image_operations" not in (tmp_path / "usual" / "manifest.json").read_text()
    assert [entry.image_operations for entry in Manifest.read(tmp_path / "other").datasets] == [("darken",)] * 2
    assert usual.lengths_sha256 != other.lengths_sha256 and usual.plan_sha256 != other.plan_sha256

    with pytest.raises(ConfigError, match=r"image_operations \['darken'\]; .* was built with image_operations \[\]"):
        IndexedPlan(IndexedSamples(tmp_path / "usual"), case.encoder.config, 0, SkipLog(0))
    samples = IndexedSamples(tmp_path / "other")
    IndexedPlan(samples, case.encoder.config, 0, SkipLog(0))
    samples.check(case.encoder.config, tokenizer, case.encoder.facts)
    del IMAGE_OPERATIONS._members["darken"]
    with pytest.raises(ConfigError, match=r"other: data set 'all': image_operations: no image operation 'darken'"):
        samples.check(case.encoder.config, tokenizer, case.encoder.facts)


def test_an_operation_takes_parameters_from_the_list(darken, tmp_path, tokenizer):
    case = with_operations(every_kind(tmp_path / "data", tokenizer), {"step": 0.02, "name": "darken"}, "darken")
    [stated, bare] = [text for text in read_data_list(case.meta)[0].image_operations]
    assert (stated, bare) == ('{"name": "darken", "step": 0.02}', "darken")
    assert [one.step for one in operations_of(further=(stated, bare))] == [0.02, 0.1]
    case.build(tmp_path / "set")
    assert Manifest.read(tmp_path / "set").datasets[0].image_operations == (stated, bare)
    IndexedPlan(IndexedSamples(tmp_path / "set"), case.encoder.config, 0, SkipLog(0))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"name": "darken", "step": 2.0}, "darken: step: found 2.0, expected between 0.01 and 0.2"),
        ({"name": "darken", "stepp": 0.1}, "darken: unknown field 'stepp'; expected step"),
        ({"step": 0.1}, "found no name of an operation"),
        ({"name": "darkn"}, "no image operation 'darkn'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(darken, tmp_path, tokenizer, listed, message):
    case = with_operations(every_kind(tmp_path / "data", tokenizer), listed)
    with pytest.raises(ConfigError, match=message):
        read_data_list(case.meta)


def test_the_state_of_a_run_notes_further_operations_only_where_there_are_some(darken, tmp_path, tokenizer):
    plain = every_kind(tmp_path / "data", tokenizer)
    case = with_operations(plain, "darken")

    def plan(one, state=None):
        return PackPlan(Mixture(read_data_list(one.meta), 5), one.encoder, SkipLog(99), state)

    states = [plan(one).state_dict() for one in (plain, case)]
    noted = [[entry["settings"].get("image_operations") for entry in state["data"].values()] for state in states]
    assert noted == [[None, None], [["darken"]] * 2]


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_that_goes_on_is_warned_of_other_operations(darken, tmp_path, tokenizer, caplog, before, after):
    plain = every_kind(tmp_path / "data", tokenizer)
    cases = {False: plain, True: with_operations(plain, "darken")}
    mixtures = {which: Mixture(read_data_list(case.meta), 5) for which, case in cases.items()}
    state = PackPlan(mixtures[before], cases[before].encoder, SkipLog(99)).state_dict()
    with caplog.at_level("WARNING"):
        PackPlan(mixtures[after], cases[after].encoder, SkipLog(99), state)
    assert sum("image_operations was" in record.getMessage() for record in caplog.records) == 2


def test_an_operation_nobody_knows_is_refused(darken, tmp_path, tokenizer):
    case = with_operations(every_kind(tmp_path / "data", tokenizer), "darkn")
    with pytest.raises(ConfigError, match=r"operations.json: dataset '\w+': image_operations: .*'darkn'.*darken"):
        read_data_list(case.meta)


def test_the_order_is_that_of_the_settings():
    found = operations_of(Opening("white", exif_rotation=True), pad_to_square=True)
    assert names_of(found) == ("transparency", "exif_rotation", "pad_to_square")
    assert names_of(operations_of(augment=True, pad_to_square=True, further=["exif_rotation"])) == (
        "jpeg",
        "exif_rotation",
    )
    assert Opening.of(found) == Opening("white", exif_rotation=True) and Opening.of(()) == image_operations.AS_PUBLISHED
    assert hash((PadToSquare(), JpegAugmentation())) == hash((PadToSquare(), JpegAugmentation()))
    assert PadToSquare() != JpegAugmentation()
