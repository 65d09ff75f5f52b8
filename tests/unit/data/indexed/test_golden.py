"""The reference's token ids, labels, tile counts and pixels, through a build and back out of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from helpers.data_cases import POLICY, Case, assert_same_ticks
from helpers.shared import shared_path
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.workshop.synthetic.small_data import config_for

TRAINED = ("single_image", "multi_image", "text_only", "multi_turn", "chinese_unicode")
SIDE = 28


def write_list(folder, rows):
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"annotation": str(folder / "all.jsonl"), "root": str(folder), "data_augment": False, "repeat_time": 1}
    (folder / "meta.json").write_text(json.dumps({"all": entry}))
    return folder / "meta.json"


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_template(golden, tmp_path, images):
    cases = json.loads((golden / "template.json").read_text())["cases"]
    rows, wanted = [], []
    for name in TRAINED:
        request, response = cases[name]["request"], cases[name]["response"]
        row = {"conversations": request["conversations"]}
        tiles = [] if request.get("text_only") else [count // 4 for count in request["num_image_token_list"]]
        names = [f"{name}{number}.png" for number in range(len(tiles))]
        for file, count in zip(names, tiles, strict=True):  # a row of square tiles becomes as many
            Image.new("RGB", (SIDE * count, SIDE)).save(tmp_path / file)
        if names:
            row["image"] = names if len(names) > 1 else names[0]
        rows.append(row)
        wanted.append((response["input_ids"], response["labels"], tiles))
    meta = write_list(tmp_path, rows)
    tokenizer = Tokenizer.from_folder(shared_path("golden/tokenizer"))
    config = config_for(meta, use_thumbnail=False, max_dynamic_patch=12)
    case = Case(meta, DocumentEncoder(config, tokenizer, ModelFacts(SIDE, 4), POLICY, seed=0))
    samples = case.build(tmp_path / "set", images=images)
    for number, (ids, labels, tiles) in enumerate(wanted):
        document = case.encoder.draw(samples[number], 0, number)
        assert document.input_ids.tolist() == ids and document.labels.tolist() == labels
        assert [count for _, count in document.images] == tiles and samples.num_tiles[number] == sum(tiles)


def test_pixels_and_grids(golden, tmp_path, tokenizer):
    """Every golden picture, tiled as its case says, embedded, read back, normalised: equal to the bit."""
    with safe_open(str(golden / "tiling_pixels.safetensors"), "pt") as stream:
        cases = json.loads(stream.metadata()["meta"])
        turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "that"}]
        for name, case in cases.items():
            folder = tmp_path / name
            folder.mkdir()
            meta = write_list(folder, [{"image": str(golden / "tiling_images" / case["file"]), "conversations": turns}])
            config = replace(
                config_for(meta),
                max_dynamic_patch=case.get("max_num", 12),
                use_thumbnail=case.get("use_thumbnail", False),
                pad2square=case.get("pad2square", False),
                dynamic_image_size=case.get("dynamic", True),
            )
            encoder = DocumentEncoder(config, tokenizer, ModelFacts(case["image_size"], 4), POLICY, seed=0)
            samples = Case(meta, encoder).build(folder / "set", images="embed")
            mean, std = NORMALISATION[case.get("normalize_type", "imagenet")]
            document = encoder.draw(samples[0], 0, 0)
            tiles = read_tiles(document.pictures, case["image_size"], mean, document.key, samples.files.open_picture)
            assert torch.equal(normalise_tiles(tiles, mean, std), stream.get_tensor(name)), name
            assert samples.num_tiles[0] == len(tiles)


def test_grids_of_all_sizes(golden, tmp_path, tokenizer):
    """A sample of the 1,200 golden sizes as empty pictures, by settings; their recorded grids are the reference's."""
    content = json.loads((golden / "tiling_grid.json").read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
    settings = {(row["min_num"], row["max_num"], row["use_thumbnail"]) for row in rows}
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "that"}]
    checked = 0
    for number, (low, high, thumbnail) in enumerate(sorted(settings)):
        mine = [row for row in rows if (row["min_num"], row["max_num"], row["use_thumbnail"]) == (low, high, thumbnail)]
        mine = [row for row in mine if row["width"] * row["height"] < 1_500_000][:6]
        folder = tmp_path / str(number)
        folder.mkdir()
        for index, row in enumerate(mine):
            Image.new("1", (row["width"], row["height"])).save(folder / f"{index}.png")
        meta = write_list(folder, [{"image": f"{index}.png", "conversations": turns} for index in range(len(mine))])
        config = replace(
            config_for(meta),
            min_dynamic_patch=low,
            max_dynamic_patch=high,
            use_thumbnail=bool(thumbnail),
            num_images_expected=60,
            max_seq_length=600,
        )
        encoder = DocumentEncoder(config, tokenizer, ModelFacts(content["image_size"], 4), POLICY, seed=0)
        samples = Case(meta, encoder).build(folder / "set") if mine else []
        for index, row in enumerate(mine):
            (picture,) = samples[index].media
            assert picture.grid == (row["grid_cols"], row["grid_rows"]) and samples.num_tiles[index] == row["tiles"]
            checked += 1
    assert checked >= 30


def test_real_data_equals_the_online_path(monkeypatch, tmp_path):
    """165 real samples: several turns, several images, text alone, Chinese."""
    monkeypatch.chdir(shared_path("real"))
    tokenizer = Tokenizer.from_folder(shared_path("golden/tokenizer"))
    config = config_for("train/annotation_train_real_small.json", max_seq_length=4096, num_images_expected=64)
    config = replace(config, max_packed_tokens=8192, max_dynamic_patch=12)
    case = Case(config.meta_path, DocumentEncoder(config, tokenizer, ModelFacts(448, 256), POLICY, seed=3))
    samples = case.build(tmp_path / "set", images="embed")
    online = [(dataset, line) for dataset in read_data_list(case.meta) for line in range(len(dataset))]
    assert len(samples) == len(online) == 165
    for number, (dataset, line) in enumerate(online):
        ours = case.encoder.draw(samples[number], 0, number)
        theirs = case.encoder.document(dataset, line, 0, number)
        assert ours.source == theirs.source and ours.images == theirs.images
        for name in ("input_ids", "labels"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        assert_same_ticks(ours.position_ticks, theirs.position_ticks)
