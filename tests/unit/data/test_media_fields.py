"""A misnamed field never trains, asks or scores blind: names of media are understood, what looks like them refused."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.media_fields import Media, may_name_media, media_of
from megatron_v2pe.workshop.checking.check import check_data_list
from megatron_v2pe.workshop.checking.report import as_text

READ = ("conversations", "clip")
TURNS = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    "name",
    "image images Image IMAGE img imgs picture Pictures photo photos pic image_path image_paths imagePath image-path "
    "image_file image_files images_list image_list image_filename img_path picture_path photo_url image_urls".split(),
)
def test_images_are_found_under_every_common_name(name):
    assert media_of({name: "a.png"}, READ, DataError) == Media(("a.png",))
    assert media_of({name: ["a.png", "b"]}, READ, DataError) == Media(("a.png", "b"), listed=True)
    for nothing in (None, "", []):
        assert media_of({name: nothing}, READ, DataError) == Media()
        assert media_of({name: nothing, "pictures": "a"}, READ, DataError).images == ("a",)
    assert may_name_media(json.dumps({name: "x"}).encode())


@pytest.mark.parametrize("name", "video videos Video VIDEOS video_path video_file videoPath videos_list movie".split())
def test_a_video_is_found_under_every_common_name(name):
    assert media_of({name: "v.mp4"}, READ, DataError) == Media(video="v.mp4")
    assert may_name_media(json.dumps({name: "x"}).encode())
    if name != "video":
        assert media_of({name: ["v.mp4"]}, READ, DataError) == Media(video="v.mp4")
        assert media_of({name: []}, READ, DataError) == Media()
    with pytest.raises(DataError, match=f"here: {name}: no video is shown here"):
        media_of({name: "v.mp4"}, READ, DataError, "here: ", video=False)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"image": "a", "images": ["b"]}, "image and images name different files"),
        ({"image": "a", "img": "b"}, "image and img name different files"),
        ({"image_path": "c/a.jpg", "image_file": "a.jpg"}, "image_path and image_file name different files"),
        ({"video": "a", "videos": ["b"]}, "video and videos name different files"),
        ({"image": "a", "video": "b"}, "image and video stand in one line"),
        ({"videos": ["a", "b"]}, "videos: expected a path"),
        ({"video": ["f1.jpg", "f2.jpg"]}, "video: expected a path"),
        ({"image": {"path": "a.png"}}, "image: expected a path or a list of paths.*of an object give the path alone"),
        ({"images": [{"bytes": None, "path": "a.png"}]}, "images: expected a path"),
        ({"image_url": {"url": "http://h/a.png"}}, "image_url: expected a path"),
        ({"img": [[0, 255], [1, 2]]}, "img: expected a path"),
        ({"image": f"data:image/png;base64,{PNG}"}, "image: holds a picture itself"),
        ({"images": [PNG]}, "images: holds a picture itself"),
    ],
)
def test_what_is_no_path_or_does_not_agree_is_refused(row, names):
    with pytest.raises(DataError, match=names) as refused:
        media_of(row, READ, DataError)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "row",
    [
        {"image2": "b"},
        {"image_2": "b.png"},
        {"first_image": "b"},
        {"picture_left": "b.png"},
        {"iamge": "x.png"},
        {"file": "scan.TIFF"},
        {"file_name": "my cat.jpg"},
        {"path": "C:\\photos\\cat.jpg"},
        {"source": "http://h/a.webp?size=3"},
        {"frames": ["1.jpg", "2.jpg"]},
        {"audio": "speech"},
        {"sound": "a.wav"},
        {"clips": ["a"]},
        {"screenshot": "s"},
        {"blob": PNG},
        {"x": f"data:image/jpeg;base64,{PNG}"},
        {"meta": {"image": "x"}},
        {"meta": {"deep": [{"file": "x.mkv"}]}},
        {"picture_data": {"path": "x"}},
        {"content": [{"type": "image_url", "image_url": {"url": "http://h/x"}}]},
        {"objects": {"image": ["x"]}},
    ],
)
def test_what_looks_like_media_is_refused_where_a_line_names_none(row):
    with pytest.raises(DataError, match=f"the field {next(iter(row))!r} looks like media .* is not read: give the"):
        media_of(row, READ, DataError)


@pytest.mark.parametrize("name", ["image2", "image_b", "second_image", "picture_left", "frames", "audio_file"])
def test_a_second_picture_beside_the_first_is_refused(name):
    with pytest.raises(DataError, match=f"the field '{name}' looks like media"):
        media_of({"image": "a.png", name: "b.png"}, READ, DataError)
    assert media_of({"image": "a.png", name: "folder/a.png"}, READ, DataError).images == ("a.png",)


PUBLISHED = {
    "id": "COCO_val2014_000000180878",
    "width": 640,
    "height": 480,
    "width_list": [640, 448],
    "height_list": [480, 448],
    "image_num": 2,
    "num_images": 2,
    "image_id": "000123.jpg",
    "token_ids": [1, 2, 3],
    "placement": [0.5],
    "meta": {"needles": ["n1.png"], "choices_image_path": ["c.png"], "num_images": 2},
    "source": "coco/train2017",
    "dataset": "llava.jpg_mix",
}


def test_what_published_lines_carry_stays():
    """The fields of V2PE-Data, MM-NIAH, LLaVA and InternVL lines beside a conversation; none is even told of."""
    assert media_of({"image": ["a.png", "b.png"], **PUBLISHED}, READ, DataError) == Media(("a.png", "b.png"), True)
    text_only = {name: value for name, value in PUBLISHED.items() if name not in ("image_id", "meta", "dataset")}
    assert media_of(text_only, READ, DataError) == Media()


@pytest.mark.parametrize(
    "row",
    [
        {"framework": "pytorch", "eclipse": "total", "timeframe": "2019"},
        {"image_source": "coco", "image_caption": "A cat.", "video_id": "v_1", "image_quality": 0.5, "is_video": True},
        {"note": "see the file named cat.png in the folder of the others"},
        {"frames": 16, "fps": 2.5, "pixel_values": [[0.5]], "image_size": [3, 4]},
    ],
)
def test_words_and_numbers_about_media_are_no_media(row):
    for named in ({}, {"image": "a.png"}):
        media = media_of({**row, **named}, READ, DataError)
        assert media.unknown == tuple(name for name in row if name not in ("video_id", "image_size"))


def test_the_same_file_may_be_named_twice():
    assert media_of({"images": ["a"], "image": ["a"]}, READ, DataError) == Media(("a",), True)
    assert media_of({"image_file": "a.jpg", "image": "c/a.jpg"}, READ, DataError) == Media(("c/a.jpg",))
    beside = {"image": "1.jpg", "image_url": "http://h/cat.jpg", "url": "http://h/cat.jpg", "file_name": "1.jpg"}
    assert media_of(beside, READ, DataError) == Media(("1.jpg",), unknown=("file_name",))
    assert media_of({"image_url": "http://h/cat.jpg"}, READ, DataError).images == ("http://h/cat.jpg",)


def test_lines_of_training_are_read_by_it():
    dataset = Dataset("d", "a.jsonl", root="one/", root2="two/")

    def read(**row):
        return dataset.parse(json.dumps({**row, "conversations": TURNS}).encode(), 1)

    assert read(Image="x.png").images == ("one/x.png",) and not read(Image="x.png").multi_image
    assert read(images=["x.png"]).images == ("two/x.png",) and read(images=["x.png"]).multi_image
    assert read(videos=["v.mp4"]).video == "one/v.mp4"
    with pytest.raises(DataError, match="turn 1: the field 'image' looks like media"):
        dataset.parse(json.dumps({"conversations": [{**TURNS[0], "image": "x.png"}, TURNS[1]]}).encode(), 1)
    with pytest.raises(DataError, match="turn 1 begins with <video>, but the line names no video"):
        dataset.parse(json.dumps({"conversations": [{"from": "human", "value": "<video>\nWhat?"}]}).encode(), 1)
    html = [{"from": "human", "value": "<video> is which tag?"}, TURNS[1]]
    assert dataset.parse(json.dumps({"conversations": html}).encode(), 1).video is None


def test_unknown_fields_are_counted_and_named(tmp_path):
    rows = [{"hint": "a", "conversations": TURNS}, {"hint": "b", "shade": 1, "id": 3, "conversations": TURNS}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"annotation": str(tmp_path / "a.jsonl"), "data_augment": False, "repeat_time": 1}
    (tmp_path / "meta.json").write_text(json.dumps({"d": entry}))
    (check,) = check_data_list(tmp_path / "meta.json")
    assert check.unread == {"hint": 2, "shade": 1} and check.complete
    told = "d: fields that are not read, with how many lines have each: 'hint' (2), 'shade' (1)"
    assert told in as_text("meta.json", [check])
    (dataset,) = read_data_list(tmp_path / "meta.json")
    assert dataset.read(1).unknown == ("hint", "shade") and dataset.unread == {"hint": 1, "shade": 1}
