"""Frames of a folder come by number, and what is no frame is left out and counted, wherever a folder is listed."""

from __future__ import annotations

import json
import random
import re

import pytest
from PIL import Image

from helpers.data_cases import Case, turns
from megatron_v2pe.data import video
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.encode import DocumentEncoder
from megatron_v2pe.data.video import list_frames, look_into, natural_key
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.mm_niah.questions import MmNiahLong
from megatron_v2pe.evaluate.families.videos.frames import video_images
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.long_context.image_pool import folder_images
from megatron_v2pe.workshop.synthetic.small_data import FACTS, config_for

ORDERS = {
    "not padded": [f"clip_{number}.jpg" for number in range(1, 13)],
    "padded": [f"{number:05d}.jpg" for number in range(1, 13)],
    "bare numbers": [f"{number}.png" for number in (0, 1, 2, 9, 10, 11, 99, 100)],
    "padding that runs out": ["f08.jpg", "f09.jpg", "f10.jpg", "f99.jpg", "f100.jpg", "f101.jpg"],
    "large suffixes": ["IMG_1.JPG", "IMG_2.jpg", "IMG_3.JPEG", "IMG_10.Png"],
    "mixed case": ["Frame1.jpg", "frame2.jpg", "FRAME10.jpg"],
    "several numbers": ["s1_e2.jpg", "s1_e10.jpg", "s2_e1.jpg", "s10_e1.jpg"],
    "equal numbers": ["f01.jpg", "f1.jpg", "f01_b.jpg", "f2.jpg"],
    "no numbers": ["a.jpg", "b.jpg", "c.jpg"],
    "numbers beside names": ["2.jpg", "10.jpg", "a.jpg", "a1.jpg"],
    "spaces and other scripts": ["кадр 1.jpg", "кадр 2.jpg", "кадр 10.jpg"],
    "long numbers": ["1699999999.jpg", "1700000000.jpg", "17000000001.jpg"],
    "numbers in the place of suffixes": ["img.1", "img.2", "img.10"],
    "other formats": ["a1.webp", "a2.tiff", "a3.gif", "a4.bmp", "a10.jp2"],
}


@pytest.mark.parametrize("kind", ORDERS)
def test_the_order_of_numbers(kind):
    names = ORDERS[kind]
    for seed in range(5):
        assert sorted(random.Random(seed).sample(names, len(names)), key=natural_key) == names


def frames(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (28, 28), (10 * number,) * 3).save(folder / name, format="PNG")
    return folder


def names_of(paths):
    return [path.rsplit("/", 1)[1] for path in paths]


def test_what_is_no_frame_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(video, "_warned", set())
    folder = frames(tmp_path / "v", ["f1.jpg", "f2.JPG", "f10.jpg", "without_suffix", "odd.frame"])
    for name in (
        ".DS_Store",
        "._f1.jpg",
        ".hidden.png",
        "Thumbs.db",
        "desktop.ini",
        "times.csv",
        "f1.jpg.txt",
        "clip.mp4",
    ):
        (folder / name).write_bytes(b"no picture")
    (folder / "more").mkdir()
    (folder / "more.jpg").mkdir()
    found = look_into(f"{folder}/")
    assert names_of(found.frames) == ["f1.jpg", "f2.JPG", "f10.jpg", "odd.frame", "without_suffix"]
    assert len(found.left_out) == 10
    for _ in range(3):
        assert list_frames(f"{folder}/") == list(found.frames)
    list_frames(f"{frames(tmp_path / 'w', ['1.jpg'])}/")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "5 frames, 10 other files left out (" in told[0]


def test_a_folder_with_nothing_left_is_refused_by_name(tmp_path):
    folder = frames(tmp_path / "v", [])
    (folder / ".DS_Store").touch()
    (folder / "Thumbs.db").write_bytes(b"no picture")
    with pytest.raises(DataError, match=re.escape(f"{folder}/: no frames in the folder, 2 other files left out")):
        list_frames(f"{folder}/")
    frames(folder, ["1.jpg"])
    (folder / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"2.jpg: not a regular file; a frame is missing"):
        list_frames(f"{folder}/")


@pytest.mark.parametrize("name", ["v/", "v"])
def test_every_way_of_training_shows_frames_by_number(tmp_path, tokenizer, name):
    """A list and a set built from it; a folder named with or without its slash is the same folder."""
    folder = frames(tmp_path / "v", ORDERS["not padded"])
    (folder / ".DS_Store").touch()
    (tmp_path / "a.jsonl").write_text(json.dumps({"video": name, "conversations": turns("what")}) + "\n")
    entry = {"annotation": str(tmp_path / "a.jsonl"), "root": str(tmp_path), "data_augment": False, "repeat_time": 1}
    (tmp_path / "meta.json").write_text(json.dumps({"own": entry}))
    config = config_for(tmp_path / "meta.json", min_num_frame=12, max_num_frame=12)
    encoder = DocumentEncoder(config, tokenizer, FACTS, StridePolicy("default"), seed=0)
    case = Case(tmp_path / "meta.json", encoder)
    online = encoder.document(read_data_list(case.meta)[0], 0, 0, 0)
    samples = case.build(tmp_path / "set", image_check="full")
    for document in (online, encoder.draw(samples[0], 0, 0)):
        assert names_of(picture.path for picture in document.pictures) == ORDERS["not padded"]


def test_benchmarks_find_frames_by_their_number(tmp_path):
    """As the published evaluator: `00001.jpg` on; files that are no frames do not count."""
    folder = frames(tmp_path / "v", [f"{number:05d}.jpg" for number in range(1, 33)])
    whole = [image.path for image in video_images(folder, None)]
    (folder / ".DS_Store").touch()
    (folder / "Thumbs.db").write_bytes(b"no picture")
    assert [image.path for image in video_images(folder, None)] == whole and len(whole) == 16


def test_hidden_files_are_left_out_of_other_folders_that_are_listed(tmp_path):
    """`._name` stands beside every file that a Mac copied: with its suffix, and no picture or question."""
    folder = frames(tmp_path / "pool", ["a.png", "b.png"])
    (folder / "._a.png").write_bytes(b"\0\5\26\7")
    assert names_of(folder_images(folder)) == ["a.png", "b.png"]
    benchmark = MmNiahLong("128K")
    questions = tmp_path / benchmark._folder
    questions.mkdir(parents=True)
    for name in ("one.jsonl", "._one.jsonl"):
        (questions / name).touch()
    assert [path.name for path in benchmark._files(tmp_path)] == ["one.jsonl"]
