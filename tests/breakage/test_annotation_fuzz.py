"""Thousands of mutated annotation lines and hundreds of images: used as they say, or refused; never anything else."""

from __future__ import annotations

import io
import json
import math
import os
import random
import time
from copy import deepcopy

import numpy as np
import pytest
from PIL import Image

from helpers.damage import SEED
from helpers.data_cases import every_kind
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.image_files import image_size, open_image
from megatron_v2pe.data.indexed.files import measure_image
from megatron_v2pe.data.turns import LONGEST_WORD
from megatron_v2pe.errors import DataError

STRANGE = (
    *(None, True, False, 0, 1, -1, 0.0, 1.5, -2.5, 10**15, 10**30, 1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "a",
        "0.png",
        "../0.png",
        "/dev/zero",
        "\0",
        "\ud83d",
        "<image>",
        "<IMG_CONTEXT>",
        "\x1b[31m",
        "é" * 300,
    ),
    *([], {}, [[]], [{}], [None], [0], ["0.png"], ["0.png", 1], [["0.png"]], {"0.png": 1}, [1, 2], [2, 1], ["1", "2"]),
    *(
        "human",
        "gpt",
        "system",
        {"from": "human", "value": "a"},
        [{"from": "human", "value": "a"}],
        "frames/",
        "clip.gif",
    ),
)
BYTES = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\xff",
    b"\0",
    b"\\ud83d",
    b"1e999",
    b"-",
    b"null",
    b"9" * 500,
)


@pytest.fixture(scope="module")
def case(tmp_path_factory, tokenizer):
    return every_kind(tmp_path_factory.mktemp("case") / "data", tokenizer)


def mutated(line, draws):
    """Return a line with values of other types in it, or with other bytes."""
    if draws.random() < 0.6:
        row = json.loads(line)
        for _ in range(draws.choice((1, 1, 2))):
            owner, key = draws.choice(list(_places(row)) or [(row, "x")])
            kind = draws.random()
            if kind < 0.75:
                owner[key] = deepcopy(draws.choice(STRANGE))
            elif kind < 0.85 and key != "x":
                del owner[key]
            elif isinstance(owner, dict):
                name = draws.choice(("image", "video", "clip", "conversations", "from", "value"))
                owner[name] = owner.get(key)
            else:
                owner.insert(key, deepcopy(draws.choice(STRANGE)))
        if draws.random() < 0.2:
            row[draws.choice(("image", "video", "clip"))] = deepcopy(draws.choice(STRANGE))
        return json.dumps(row, ensure_ascii=draws.random() < 0.5).encode("utf-8", "surrogatepass")
    content = bytearray(line)
    for _ in range(draws.choice((1, 1, 2, 5))):
        place = draws.randrange(len(content) or 1)
        kind = draws.random()
        if kind < 0.4 and content:
            content[place] ^= 1 << draws.randrange(8)
        elif kind < 0.6:
            content[place:place] = draws.choice(BYTES)
        elif kind < 0.8:
            del content[place : place + draws.randrange(1, 20)]
        else:
            content[place:place] = content[place : place + draws.randrange(1, 40)]
    return bytes(content).replace(b"\n", b" ")


def _places(value):
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def acceptable(line):
    """Whether a line may be a sample: every field of the type docs/data.md gives it. Written without the reader."""
    row = json.loads(line.decode())
    assert type(row) is dict

    def is_name(value):
        return (
            type(value) is str
            and value != ""
            and "\0" not in value
            and not any("\ud800" <= c < "\ue000" for c in value)
        )

    image, video, clip = row.get("image"), row.get("video"), row.get("clip")
    assert image is None or image == "" or is_name(image) or (type(image) is list and all(map(is_name, image)))
    assert video is None or video == "" or is_name(video)
    if clip is not None:
        assert type(clip) is list and len(clip) == 2
        assert all(type(value) in (int, float) and math.isfinite(value) for value in clip)
    turns = row["conversations"]
    assert type(turns) is list and turns
    assert all(type(turn) is dict and type(turn["from"]) is type(turn["value"]) is str for turn in turns)
    roles = [turn["from"] for turn in turns][turns[0]["from"] == "gpt" :]
    assert roles and roles == (["human", "gpt"] * len(roles))[: len(roles)] and len(roles) % 2 == 0
    return row


def test_2000_lines(case):
    draws, datasets = random.Random(SEED), read_data_list(case.meta)
    lines = []
    for dataset in datasets:
        for block in dataset.blocks(128, 1 << 20):
            lines += [(dataset, line) for _, line in block.read(dataset.annotation)]
    accepted, refused, began = 0, 0, time.process_time()
    for number in range(2000):
        dataset, line = draws.choice(lines)
        line = mutated(line, draws)
        try:
            sample = dataset.parse(line, number)
            encoded = case.encoder.encode_sample(sample, dataset)
            document = case.encoder.draw(encoded, 0, number)
        except DataError as error:
            refused += 1
            assert str(error).isprintable() or "\n" in str(error), str(error)
            continue
        accepted += 1
        row = acceptable(line)
        names = row.get("image") or ()
        assert len(sample.images) == (1 if isinstance(names, str) else len(names))
        assert (sample.video is not None) == (not names and bool(row.get("video")))
        assert document.num_tokens == encoded.num_tokens and document.num_tiles == encoded.num_tiles
    assert accepted > 100 and refused > 700, (accepted, refused)
    assert time.process_time() - began < 30


def test_the_oracle_sees_what_was_taken_for_text_before(case):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for value in (0, False, {}, [0]):
        line = json.dumps({"image": value, "conversations": turns}).encode()
        with pytest.raises(AssertionError):
            acceptable(line)
        with pytest.raises(DataError, match="image: expected a path"):
            read_data_list(case.meta)[0].parse(line, 1)


def test_words_without_end(case):
    """50 MB in one word took over a minute; the longest word that is read takes about a second."""
    dataset, began = read_data_list(case.meta)[0], time.process_time()
    for text in ("a" * 50_000_000, "é" * (LONGEST_WORD + 1), "b c " * 10 + "\n" + "x" * (LONGEST_WORD + 1)):
        line = json.dumps({"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "b"}]}).encode()
        with pytest.raises(DataError, match="characters without a blank, at most 1048576 are read"):
            dataset.parse(line, 1)
    assert time.process_time() - began < 20


def images():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 36, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for kind, options in (
        *((kind, {}) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "TGA", "ICO")),
        ("JPEG", {"progressive": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        yield stream.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow tells of damaged tags it goes on without, and of large images
def test_500_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 22)  # not gigabytes for a header that asks for them
    draws, whole, path = random.Random(SEED), list(images()), tmp_path / "image"
    opened, refused, began = 0, 0, time.process_time()
    for trial in range(500):
        content = bytearray(draws.choice(whole))
        for _ in range(draws.choice((1, 2, 4))):
            reach = len(content) if draws.random() < 0.5 else min(len(content), 100)
            content[draws.randrange(reach)] = draws.randrange(256)
        if draws.random() < 0.2:
            del content[draws.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            size = image_size(str(path))
            measured = measure_image(str(path), trial % 2 == 0)
            image = open_image(str(path))
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
            continue
        opened += 1
        assert image.mode == "RGB" and image.size == (measured.width, measured.height) and min(size) > 0
    assert opened > 50 and refused > 50, (opened, refused)
    assert time.process_time() - began < 30


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch pwned) pop showpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [POSTSCRIPT, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"", b"#EXTM3U\n", b"\x1f\x8b" + b"\0" * 50],
    ids=["eps", "svg", "empty", "playlist", "gzip"],
)
def test_what_is_no_image_whatever_its_name(tmp_path, monkeypatch, content):
    def started(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", started)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for look in (image_size, open_image, lambda path: measure_image(path, True)):
        with pytest.raises(DataError, match=rf"photo.jpg: not an image \({len(content)} bytes\)"):
            look(str(path))


def test_special_files_are_refused_at_once(case, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    dataset, began = read_data_list(case.meta)[0], time.process_time()
    for name, kind in (("pipe.png", "a pipe"), ("zero.png", "a device"), ("folder.png", "a folder")):
        row = {
            "image": str(tmp_path / name),
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        }
        sample = dataset.parse(json.dumps(row).encode(), 1)
        with pytest.raises(DataError, match=rf"{name}: {kind}, expected a"):
            case.encoder.encode_sample(sample, dataset)
    assert time.process_time() - began < 5
