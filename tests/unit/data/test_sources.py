"""Data lists and annotation files: every field, every path rule, and errors that name file and line."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import pytest

from megatron_v2pe.data.sources import Dataset, read_data_list
from megatron_v2pe.errors import ConfigError, DataError

ASK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def write(folder, lines, **entry):
    (folder / "a.jsonl").write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )
    entry = {"annotation": str(folder / "a.jsonl"), "data_augment": False, "repeat_time": 1, **entry}
    path = folder / "meta.json"
    path.write_text(json.dumps({"set": {key: value for key, value in entry.items() if value is not None}}))
    return path


def test_lines_are_found_whatever_stands_between(tmp_path):
    rows = [{"conversations": [{"from": "human", "value": f"é {i}"}, ASK[1]]} for i in range(5)]
    (dataset,) = read_data_list(
        write(tmp_path, [rows[0], "\n", rows[1], "  \n", rows[2], rows[3], json.dumps(rows[4])])
    )
    assert len(dataset) == 5
    assert [dataset.read(i).conversations[0][1] for i in range(5)] == [f"é {i}" for i in range(5)]
    assert [dataset.id_of(i).line for i in range(5)] == [1, 3, 5, 6, 7]


def test_the_index_is_small(tmp_path):
    """While it is built too: data lists have tens of millions of lines."""
    (tmp_path / "a.jsonl").write_text("{}\n" * 100_000)
    tracemalloc.start()
    dataset = Dataset("d", str(tmp_path / "a.jsonl"))
    assert len(dataset) == 100_000 and dataset.id_of(99_999).line == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 100_000


def test_sample_kinds(tmp_path):
    rows = [
        {"image": "x.png", "conversations": ASK},
        {"image": ["x.png"], "conversations": ASK},
        {"video": "v.mp4", "clip": [1, 2.5], "conversations": ASK},
        {"image": "", "conversations": [{"from": "gpt", "value": ""}, *ASK]},
    ]
    (dataset,) = read_data_list(write(tmp_path, rows, root="/pics"))
    single, multi, video, text = (dataset.read(i) for i in range(4))
    assert (single.images, single.multi_image) == (("/pics/x.png",), False)
    assert (multi.images, multi.multi_image) == (("/pics/x.png",), True)
    assert (video.video, video.clip, video.images) == ("/pics/v.mp4", (1.0, 2.5), ())
    assert text.images == () and text.video is None
    assert text.conversations == (("human", "a"), ("gpt", "b")), "a leading answer is dropped"


@pytest.mark.parametrize(
    ("name", "multi", "expected"),
    [
        ("a.png", False, "root/a.png"),
        ("a.png", True, "two/a.png"),
        ("/mnt/a.png", True, "/mnt/a.png"),
        ("s3://b/a.png", False, "root/s3://b/a.png"),
        ("http://h/a.png", False, "web/" + hashlib.sha256(b"http://h/a.png").hexdigest()),
    ],
)
def test_path_rules(name, multi, expected):
    dataset = Dataset("d", "a.jsonl", root="root/", root2="two/", http_root="web")
    assert dataset.resolve(name, multi) == expected


def test_root_may_end_in_a_colon(tmp_path):
    (dataset,) = read_data_list(write(tmp_path, [{"image": "s3://b/x.png", "conversations": ASK}], root="mirror:"))
    assert dataset.read(0).images == ("mirror:s3://b/x.png",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"conversations": [\n', "malformed JSON"),
        ("[1]\n", "holds a list, expected an object"),
        ({"image": "x"}, "'conversations' is missing or empty"),
        ({"conversations": [{"from": "human"}]}, "turn 1 has no text"),
        ({"image": [1], "conversations": ASK}, "expected a path or a list of paths"),
        ({"image": "a\0b", "conversations": ASK}, "image: expected a path or a list of paths, found 'a.x00b'"),
        ({"image": "\ud83d.png", "conversations": ASK}, r"image: expected .* found '.ud83d.png'"),
        ({"image": "http://h/\ud83d.png", "conversations": ASK}, "image: expected"),
        ({"video": 5, "conversations": ASK}, "video: expected a path, found 5"),
        ({"video": ["v.mp4"], "conversations": ASK}, "video: expected a path"),
        ({"video": "v.mp4\0", "conversations": ASK}, "video: expected a path"),
        ({"video": "v.mp4", "clip": "abc", "conversations": ASK}, "clip: expected .* in seconds, found 'abc'"),
        ({"video": "v.mp4", "clip": [1], "conversations": ASK}, r"clip: expected .* found \[1\]"),
        ({"video": "v.mp4", "clip": {"a": 1}, "conversations": ASK}, "clip: expected"),
        ({"video": "v.mp4", "clip": [None, 2], "conversations": ASK}, "clip: expected"),
        ({"video": "v.mp4", "clip": [10**400, 2], "conversations": ASK}, "clip: expected"),
        ({"video": "v.mp4", "clip": [float("nan"), 2], "conversations": ASK}, "clip: expected"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}, ASK[1]]}, "turn 1 holds half a surrogate pair"),
        ({"conversations": [ASK[0], {"from": "gpt", "value": " \n"}]}, "turn 2 is an empty answer"),
        ('{"length": ' + "1" * 5000 + "}\n", "malformed JSON"),
        ("[" * 100_000 + "\n", "malformed JSON"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    (dataset,) = read_data_list(write(tmp_path, [line]))
    with pytest.raises(DataError, match=message):
        dataset.read(0)
    assert str(dataset.id_of(0)) == f"{tmp_path}/a.jsonl:1 (set)"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"repeat_time": 0}, "repeat_time is 0, expected a number above 0"),
        ({"repeat_time": None}, "field 'repeat_time' is missing"),
        ({"data_augment": None}, "field 'data_augment' is missing"),
        ({"annotation": "a.json"}, "a.json is not a .jsonl file"),
        ({"annotation": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"rot": "x"}, "unknown field rot; known are annotation"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch is 0"),
    ],
)
def test_bad_entries(tmp_path, entry, message):
    with pytest.raises(ConfigError, match=message):
        read_data_list(write(tmp_path, [{"conversations": ASK}], **entry))


def test_bad_lists(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_data_list(tmp_path / "gone.json")
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ConfigError, match="meta.json: not valid JSON"):
        read_data_list(tmp_path / "meta.json")
    with pytest.raises(ConfigError, match="holds no samples"):
        read_data_list(write(tmp_path, ["\n"]))
