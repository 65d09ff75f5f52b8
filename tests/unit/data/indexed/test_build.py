"""What a build stores: equal to the online path, whatever the number of workers; refused where something is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from PIL import Image

from helpers.data_cases import assert_same_folders, assert_same_ticks
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.indexed import layout
from megatron_v2pe.data.indexed.finish import plan_digest
from megatron_v2pe.data.indexed.megatron_format import Sequences, write_index
from megatron_v2pe.data.indexed.samples import IndexedSamples
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.seal import seal
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_equal_to_the_online_path(case, tmp_path, images):
    samples = case.build(tmp_path / "set", images=images)
    online = [(dataset, line) for dataset in read_data_list(case.meta) for line in range(len(dataset))]
    assert len(samples) == len(online) == 34
    for number, (dataset, line) in enumerate(online):
        ours, theirs = samples[number], case.encoder.encode(dataset, line)
        assert ours.source == theirs.source and ours.num_tokens == theirs.num_tokens == samples.num_tokens[number]
        assert ours.num_tiles == theirs.num_tiles == samples.num_tiles[number]
        for epoch in (0, 1):
            one, other = case.encoder.draw(ours, epoch, number), case.encoder.draw(theirs, epoch, number)
            for name in ("input_ids", "labels"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert_same_ticks(one.position_ticks, other.position_ticks)
            assert one.images == other.images and one.key == other.key
            pixels = read_tiles(one.pictures, 28, (0.5,) * 3, one.key, samples.files.open_picture)
            assert torch.equal(pixels, read_tiles(other.pictures, 28, (0.5,) * 3, other.key))


def test_recorded_spans_are_those_of_the_documents(case, tmp_path):
    samples = case.build(tmp_path / "set")
    rows = np.fromfile(tmp_path / "set" / layout.SAMPLES, layout.SAMPLE)
    media = np.fromfile(tmp_path / "set" / layout.MEDIA, layout.MEDIUM)
    for number in range(len(samples)):
        document = case.encoder.draw(samples[number], 0, number)
        assert rows["supervised"][number] == (document.labels != -100).sum()
        end = rows["first_medium"][number + 1] if number + 1 < len(rows) else len(media)
        mine = media[rows["first_medium"][number] : end]
        starts = [start for start, _ in document.images]
        expected = starts[:1] if len(mine) and mine["video"][0] else starts
        assert mine["start"].tolist() == expected


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_workers_do_not_change_a_byte(case, tmp_path, monkeypatch, images):
    case.build(tmp_path / "one", images=images)
    monkeypatch.setattr("megatron_v2pe.data.indexed.pieces.LINES_AT_ONCE", 3)
    monkeypatch.setattr("megatron_v2pe.data.indexed.pieces.FILES_AT_ONCE", 2)
    case.build(tmp_path / "other", images=images, workers=2)
    assert_same_folders(tmp_path / "one", tmp_path / "other")


def test_equal_images_are_embedded_once_and_unreadable_ones_reported(case, tmp_path):
    root = tmp_path / "data" / "image"
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    (root / "broken.png").write_bytes(b"no image")
    good = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    rows = [{"image": "copy.png", **good}, {"image": "broken.png", **good}, {"image": "gone.png", **good}, "no object"]
    annotation = tmp_path / "data" / "more.jsonl"
    annotation.write_text("\n".join(json.dumps(row) for row in rows) + "\n{\n")
    samples = case.build(tmp_path / "set", images="embed")
    assert len(samples) == 31
    names = [samples.files.table.path(number) for number in range(len(samples.files.table))]
    copies = {
        name.rpartition("/")[2]: int(row["copy"]) for name, row in zip(names, samples.files.table.rows, strict=True)
    }
    assert copies["copy.png"] == copies["0.png"] and copies["broken.png"] == copies["gone.png"] == -1
    assert len(Sequences(tmp_path / "set" / "images")) == 6
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    more = report["datasets"][1]
    assert (more["samples"], more["skipped"], report["unreadable_files"]) == (1, 4, 2)
    assert [line for line, _ in more["skipped_lines"]] == [2, 3, 4, 5]
    assert "not an image (8 bytes)" in more["skipped_lines"][0][1] and "no such image" in more["skipped_lines"][1][1]
    assert "left out of more" in (tmp_path / "set" / "report.txt").read_text()
    with pytest.raises(DataError, match="--max-skipped allows 1"):
        case.build(tmp_path / "strict", max_skipped_samples=1)
    assert not (tmp_path / "strict").exists()


def test_images_supplied_later_are_found(case, tmp_path):
    """A build that left samples out for missing images, was stopped, and is run again when they are there."""
    images = tmp_path / "data" / "image"
    whole = case.build(tmp_path / "whole").folder
    images.rename(tmp_path / "away")
    with pytest.raises(DataError, match="(?s)no such image.*--max-skipped allows 0"):
        case.build(tmp_path / "set", max_skipped_samples=0)
    (tmp_path / "away").rename(images)
    assert_same_folders(case.build(tmp_path / "set").folder, whole)


def test_a_path_used_as_a_video_and_as_an_image(case, tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [{"video": "clip.gif", "conversations": turns}, {"image": "clip.gif", "conversations": turns}]
    (tmp_path / "data" / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = case.build(tmp_path / "set")
    kinds = [type(samples[number].media[0]).__name__ for number in (30, 31)]
    assert kinds == ["Clip", "Picture"] and samples.num_tiles[31] >= 1


def test_names_that_look_like_formulas_and_keys_spelt_with_escapes(case, tmp_path):
    lists = json.loads(case.meta.read_text())
    case.meta.write_text(json.dumps({"price_$5_to_$9^": lists["all"], "_hidden": lists["more"]}))
    more = tmp_path / "data" / "more.jsonl"
    more.write_text(more.read_text().replace('"image"', '"im\\u0061ge"'))
    samples = case.build(tmp_path / "set")
    assert len(samples) == 34 and samples.num_tiles[33] >= 1


def test_changed_frames_are_refused(case, tmp_path):
    samples = case.build(tmp_path / "set")
    clip = samples[30].media[0]
    samples.files.check_video(clip.file, clip.path)
    frame = tmp_path / "data" / "image" / "frames" / "003.png"
    frame.write_bytes(frame.read_bytes() + b"!")
    with pytest.raises(DataError, match="other frames than when the data set was built"):
        samples.files.check_video(clip.file, clip.path)


def test_damaged_manifests(case, tmp_path):
    manifest = case.build(tmp_path / "set").folder / "manifest.json"
    whole = json.loads(manifest.read_text())
    for content, message in (
        ([], "manifest.json: holds a list, expected an object"),
        ({}, "not the manifest"),
        ({key: value for key, value in whole.items() if key != "datasets"}, "damaged"),
        ({**whole, "extra": 1}, "damaged"),
    ):
        manifest.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            IndexedSamples(tmp_path / "set")


def test_a_set_without_checksums_is_known_to_be_done(case, tmp_path, monkeypatch):
    """One of version 1, from before there were checksums; the same command again finds it built."""
    plans = []
    monkeypatch.setattr("megatron_v2pe.data.indexed.build.plan_digest", lambda plan: plans.append(plan) or "0" * 16)
    folder = case.build(tmp_path / "set").folder
    monkeypatch.undo()
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    for name in ("check", "block", "checksums_xxh3"):
        del content[name]
    del content["sizes"]["checksums.bin"]
    content["plan_sha256"] = plan_digest({**plans[0], "version": 1})
    manifest.write_text(json.dumps({**content, "version": 1}))
    assert len(case.build(folder)) == 34
    manifest.write_text(json.dumps({**content, "version": 1, "check": "0"}))
    with pytest.raises(DataError, match="format version 1, this program reads version 2"):
        IndexedSamples(folder)


def test_an_existing_folder_is_not_touched(case, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match="is there already, and no indexed data set"):
        case.build(tmp_path / "set")
    with pytest.raises(ConfigError, match="name the folder to be made"):
        case.build(".")


def test_damage_behind_the_header_is_found_where_asked_for(case, tmp_path):
    picture = tmp_path / "data" / "image" / "0.png"
    picture.write_bytes(picture.read_bytes()[:-400])
    assert len(case.build(tmp_path / "header")) == 34
    report = case.build(tmp_path / "full", image_check="full").folder / "report.json"
    assert "damaged image" in report.read_text()


def test_report_and_plot(case, tmp_path):
    case.build(tmp_path / "set")
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    samples = IndexedSamples(tmp_path / "set")
    assert report["tokens"] == samples.num_tokens.sum() and report["tiles"] == samples.num_tiles.sum()
    assert [sum(entry["histogram"]) for entry in report["datasets"]] == [30, 4]
    assert Image.open(tmp_path / "set" / "lengths.png").size[0] > 600
    lines = (tmp_path / "set" / "report.txt").read_text().splitlines()
    assert lines[1].split()[:4] == ["all", "30", "30", "0"] and len({len(line) for line in lines[:4]}) == 1


def test_the_format_is_megatron_cores(case, tmp_path):
    samples = case.build(tmp_path / "set", images="embed")
    theirs = IndexedDataset(str(tmp_path / "set" / "tokens"))
    assert len(theirs) == len(samples)
    for number in range(len(samples)):
        assert np.array_equal(theirs[number], samples[number].text.ids)
    for name, dtype in (("tokens", np.int32), ("images", np.uint8)):
        builder = IndexedDatasetBuilder(str(tmp_path / f"{name}.bin"), dtype=dtype)
        sequences = Sequences(tmp_path / "set" / name)
        for number in range(len(sequences)):
            builder.add_item(torch.from_numpy(np.array(sequences[number])))
            builder.end_document()
        builder.finalize(str(tmp_path / f"{name}.idx"))
        for suffix in ("bin", "idx"):
            assert (tmp_path / f"{name}.{suffix}").read_bytes() == (tmp_path / "set" / f"{name}.{suffix}").read_bytes()


def test_an_empty_index_can_be_read(tmp_path):
    write_index(tmp_path / "none.idx", np.array([], dtype=np.int64), np.dtype("<i4"))
    (tmp_path / "none.bin").touch()
    assert len(Sequences(tmp_path / "none")) == 0


@pytest.mark.parametrize("name", ["tokens.bin", "samples.bin", "files.bin", "images.bin", "tokens.idx"])
def test_truncated_files_are_refused(case, tmp_path, name):
    case.build(tmp_path / "set", images="embed")
    path = tmp_path / "set" / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{name}: has {size - 5} bytes, {size} were written"):
        IndexedSamples(tmp_path / "set")
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: is missing"):
        IndexedSamples(tmp_path / "set")


def test_other_versions_and_half_built_folders_are_refused(case, tmp_path):
    case.build(tmp_path / "set")
    index = tmp_path / "set" / "tokens.idx"
    content = bytearray(index.read_bytes())
    content[9] = 2
    index.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens.idx: bytes 0 to \d+ are not those that were written"):
        IndexedSamples(tmp_path / "set")
    with pytest.raises(DataError, match=r"tokens.idx: version 2, .* expected version 1"):
        Sequences(tmp_path / "set" / "tokens")
    content[:9] = b"something"
    index.write_bytes(content)
    with pytest.raises(DataError, match="not the index of a Megatron-Core indexed data set"):
        Sequences(tmp_path / "set" / "tokens")
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 7'))
    with pytest.raises(DataError, match="format version 7, this program reads version 2"):
        IndexedSamples(tmp_path / "set")
    manifest.unlink()
    with pytest.raises(DataError, match=r"no manifest.json: not a finished indexed data set"):
        IndexedSamples(tmp_path / "set")


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_changed_images_are_refused(case, tmp_path, images):
    samples = case.build(tmp_path / "set", images=images)
    picture = case.encoder.draw(samples[0], 0, 0).pictures[0]
    before = samples.files.open_picture(picture).tobytes()
    content = bytearray((tmp_path / "data" / "image" / "0.png").read_bytes())
    (tmp_path / "data" / "image" / "0.png").write_bytes(content + b"more")
    if images == "embed":
        assert samples.files.open_picture(picture).tobytes() == before
        stored = tmp_path / "set" / "images.bin"
        damaged = bytearray(stored.read_bytes())
        damaged[100] ^= 1
        stored.write_bytes(damaged)
        with pytest.raises(DataError, match="other checksum.*the data set is damaged"):
            IndexedSamples(tmp_path / "set").files.open_picture(picture)
        return
    with pytest.raises(DataError, match=rf"0.png: {len(content) + 4} bytes, {len(content)} when .* was built"):
        samples.files.open_picture(picture)
    content[60] ^= 1
    (tmp_path / "data" / "image" / "0.png").write_bytes(content)
    with pytest.raises(DataError, match=r"0.png: .*same size, other checksum.*the image changed"):
        samples.files.open_picture(picture)
    (tmp_path / "data" / "image" / "0.png").unlink()
    with pytest.raises(DataError, match="no such image"):
        samples.files.open_picture(picture)


def test_no_usable_sample(case, tmp_path):
    encoder = replace(case.encoder, config=config_for(case.meta, max_seq_length=8))
    with pytest.raises(DataError, match=r"none of the 34 samples can be used .*longer than data.max_seq_length 8"):
        case.build(tmp_path / "set", encoder=encoder)
    assert not (tmp_path / "set").exists()


def test_other_settings_are_refused(case, tmp_path, tokenizer):
    samples = case.build(tmp_path / "set")
    again = case.build(tmp_path / "set")
    assert again.manifest == samples.manifest
    other = replace(case.encoder, config=config_for(case.meta, max_dynamic_patch=3, min_num_frame=2, max_num_frame=4))
    with pytest.raises(ConfigError, match="holds a data set built with other settings"):
        case.build(tmp_path / "set", encoder=other)
    (tmp_path / "begun.building").mkdir()
    plan = tmp_path / "begun.building" / "plan.json"
    plan.write_text(json.dumps(seal({"format": "plan of a megatron-v2pe indexed data set", "seed": 5})))
    with pytest.raises(ConfigError, match=r"begun.building holds a build begun with other .*settings"):
        case.build(tmp_path / "begun")
    plan.write_text(json.dumps({"seed": 5}))
    with pytest.raises(ConfigError, match=r"plan.json: a build begun by another version of this program; delete"):
        case.build(tmp_path / "begun")
    plan.write_text(
        json.dumps(seal({"format": "plan of a megatron-v2pe indexed data set", "seed": 5})).replace("5", "6", 1)
    )
    with pytest.raises(DataError, match=r"plan.json: damaged: changed since it was written .* to start anew"):
        case.build(tmp_path / "begun")
    samples.check(case.encoder.config, tokenizer, FACTS)
    with pytest.raises(ConfigError, match=r"built with max_dynamic_patch 6 \(now 3\)"):
        samples.check(other.config, tokenizer, FACTS)
    with pytest.raises(ConfigError, match=r"built with tile_size 28 \(now 14\)"):
        samples.check(case.encoder.config, tokenizer, replace(FACTS, tile_size=14))
    with pytest.raises(ConfigError, match=r"\d+ tokens, data.max_packed_tokens is 50"):
        samples.check(replace(case.encoder.config, max_packed_tokens=50), tokenizer, FACTS)


def test_another_tokenizer_is_refused(case, tmp_path, tokenizer):
    samples = case.build(tmp_path / "set")
    other = type(tokenizer)(tokenizer.model_file, {**tokenizer.special, "<more>": len(tokenizer)})
    with pytest.raises(ConfigError, match="another tokenizer than"):
        samples.check(case.encoder.config, other, FACTS)
