"""Annotation lines to documents: tiles, positions and every way a sample can be unusable."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.image_operations import NORMALISATION, operations_of
from megatron_v2pe.data.image_plan import TilingOptions, plan_images
from megatron_v2pe.data.image_tiles import read_tiles
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for

ANSWER = {"from": "gpt", "value": "yes"}
MEAN = NORMALISATION["imagenet"][0]


@pytest.fixture
def encode(tokenizer, tmp_path):
    Image.new("RGB", (84, 28), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (28, 28), "blue").save(tmp_path / "square.png")

    def run(row, policy=None, epoch=0, number=0, settings=None, **dataset):
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        config = config_for(tmp_path / "meta.json", **(settings or {}))
        encoder = DocumentEncoder(config, tokenizer, FACTS, policy or StridePolicy("v2pe_fix", 2), seed=3)
        entry = Dataset("d", str(tmp_path / "a.jsonl"), root=f"{tmp_path}/", **dataset)
        return encoder.document(entry, 0, epoch, number)

    return run


def ask(text, **fields):
    return {**fields, "conversations": [{"from": "human", "value": text}, ANSWER]}


def test_single_image(encode, tokenizer):
    document = encode(ask("what", image="wide.png"))
    assert [picture.grid for picture in document.pictures] == [(3, 1)] and document.num_tiles == 4
    ((start, tiles),) = document.images
    assert (document.input_ids[start : start + 16] == tokenizer.img_context_id).all() and tiles == 4
    assert document.position_ticks.values[start + 16] - document.position_ticks.values[start - 1] == (2 * 4 + 1) * 4
    assert document.position_ticks.last % 4 == 0


def test_text_has_ordinary_positions(encode):
    document = encode(ask("what"))
    assert document.position_ticks.values.tolist() == [4 * i for i in range(document.num_tokens)]
    assert document.num_tiles == 0 and document.pictures == ()


def test_data_set_settings_win(encode):
    row = ask("what", image="wide.png")
    assert encode(row, max_dynamic_patch=2).num_tiles == 3
    assert encode(row, dynamic_image_size=False).num_tiles == 1
    assert encode(row, settings={"use_thumbnail": False}).num_tiles == 3
    two = ask("<image> <image>", image=["wide.png", "wide.png"])
    assert encode(two, settings={"dynamic_max_patch": True, "max_dynamic_patch": 4}).num_tiles == 6


def test_strides_are_drawn_per_sample_and_epoch(encode):
    row = ask("<image><image><image>", image=["square.png"] * 3)
    policy = StridePolicy("v2pe_rnd", strides=(1, 2, 4, 8), seed=3)
    ends = {(e, n): encode(row, policy, e, n).position_ticks.last for e in range(3) for n in range(3)}
    assert len(set(ends.values())) > 3
    assert ends[1, 1] == encode(row, policy, 1, 1).position_ticks.last


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (ask("what", image="gone.png"), {}, "gone.png: no such image"),
        (ask("<image> <image>", image=["wide.png"]), {}, "2 <image> placeholders .* 1 images"),
        (ask("what", image=["wide.png"]), {}, "0 <image> placeholders .* 1 images"),
        (ask("see <image>"), {}, "1 <image> placeholders .* 0 images"),
        (ask("what " * 200), {}, r"\d+ tokens, longer than data.max_seq_length 400"),
        (ask("what", image="wide.png"), {"num_images_expected": 3}, "4 tiles, data.num_images_expected allows 3"),
        (ask("what <IMG_CONTEXT>"), {}, "1 <IMG_CONTEXT> tokens in the text, but 0 images"),
    ],
)
def test_unusable_samples(encode, row, settings, message):
    with pytest.raises(DataError, match=message):
        encode(row, settings=settings)


def test_augmentation_depends_on_its_key_alone(encode, tmp_path):
    noise = torch.randint(0, 255, (60, 90, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "noise.png")
    options = TilingOptions(tile_size=28, max_num=6, operations=operations_of(augment=True))

    def tiles(key):
        return read_tiles(plan_images([str(tmp_path / "noise.png")], options), 28, MEAN, key)

    assert torch.equal(tiles((0, 1, 2)), tiles((0, 1, 2)))
    assert not torch.equal(tiles((0, 1, 2)), tiles((0, 1, 3)))
    plain = read_tiles(plan_images([str(tmp_path / "noise.png")], replace(options, operations=())), 28, MEAN)
    assert plain.shape == tiles((0, 1, 2)).shape == (7, 28, 28, 3)
    assert 0 < (plain.int() - tiles((0, 1, 2)).int()).abs().float().mean() < 40
