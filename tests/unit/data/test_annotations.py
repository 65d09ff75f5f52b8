"""Data lists and annotation files: every field, every path rule, and errors that name file and line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tracemalloc

import pytest

from megatron_v2pe.data.annotations import Dataset
from megatron_v2pe.data.data_list import read_data_list
from megatron_v2pe.data.turns import LONGEST_WORD
from megatron_v2pe.errors import ConfigError, DataError

NO_PATHS = (0, 0.0, False, True, {}, 1, -3.5, {"a": "b.png"})
ASK = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def write(folder, lines, **entry):
    encoded = (line if isinstance(line, bytes | str) else json.dumps(line) + "\n" for line in lines)
    (folder / "a.jsonl").write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in encoded))
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


def test_lines_are_found_as_python_finds_them(tmp_path, monkeypatch):
    draws, path = random.Random(0), tmp_path / "a.jsonl"
    for _ in range(200):
        monkeypatch.setattr("megatron_v2pe.data.annotations._READ_BYTES", draws.choice((1, 2, 3, 7, 64)))
        parts = (b"\n", b" ", b"a", b"\r\n", b"\t\n", b"xyz", b"\x0b")
        path.write_bytes(b"".join(draws.choices(parts, k=draws.randrange(60))))
        position, expected = 0, []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if line.strip():
                expected.append((position, number))
            position += len(line) + 1
        dataset = Dataset("d", str(path))
        found = [row for block in dataset.blocks(5, 20) for row in block.rows.tolist()]
        assert [tuple(row) for row in found] == expected
        lines = [line for block in dataset.blocks(5, 20) for line in block.read(dataset.annotation)]
        assert [(number, line.strip()) for number, line in lines] == [
            (number, path.read_bytes()[start:].split(b"\n")[0].strip()) for start, number in expected
        ]


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
        ('{"conversations": [\n', "not valid JSON"),
        ("[1]\n", "holds a list, expected an object"),
        ({"image": "x"}, "'conversations' is missing or empty"),
        ({"conversations": [{"from": "human"}]}, "turn 1: 'value': is missing"),
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
        ({"video": "v.mp4", "clip": [10**300, 2], "conversations": ASK}, "clip: expected"),
        ({"video": "v.mp4", "clip": [float("nan"), 2], "conversations": ASK}, "clip: expected"),
        ({"conversations": [{"from": "human", "value": "\ud83d"}, ASK[1]]}, "turn 1 holds half a surrogate pair"),
        ({"conversations": [ASK[0], {"from": "gpt", "value": " \n"}]}, "turn 2 is an empty answer"),
        ('{"length": ' + "1" * 5000 + "}\n", "a number of 5000 digits"),
        ("[" * 100_000 + "\n", "nested deeper than 64"),
        ('{"a": "\xff"}\n'.encode("latin-1"), "not UTF-8: byte 7"),
        *(({"image": value, "conversations": ASK}, "image: expected a path") for value in NO_PATHS),
        *(({"video": value, "conversations": ASK}, "video: expected a path") for value in (*NO_PATHS, [])),
        *(({"image": [value], "conversations": ASK}, "image: expected a path") for value in (*NO_PATHS, "", [], None)),
        *(
            ({"video": "v.mp4", "clip": value, "conversations": ASK}, r"clip: expected \[start, end\] in seconds")
            for value in (0, False, "", [], {}, ["1", "2"], [True, 2], [float("inf"), 2], [1, 2, 3], [[1, 2]])
        ),
        *(
            ({"conversations": value}, "conversations")
            for value in (0, False, {}, "a", [[]], [None], ["a"], [{"from": 1, "value": "a"}], [{"from": "human"}])
        ),
        (
            {"conversations": [{"from": "human", "value": ["a"]}, ASK[1]]},
            "turn 1: 'value': found a list, expected text",
        ),
        ({"conversations": [ASK[0], {"from": "gpt", "value": "w" * (LONGEST_WORD + 1)}]}, "turn 2 has 1048577 charac"),
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
        ({"rot": "x"}, "unknown field 'rot'; expected annotation, data_augment"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch: found 0, expected between 1 and 4096"),
        ({"max_dynamic_patch": True}, "max_dynamic_patch: found true, expected a whole number"),
        ({"max_dynamic_patch": 1.5}, "max_dynamic_patch: found 1.5, expected a whole number"),
        ({"repeat_time": "2"}, "repeat_time: found the text '2', expected a number"),
        ({"repeat_time": True}, "repeat_time: found true, expected a number"),
        ({"repeat_time": -1}, "repeat_time: found -1"),
        ({"repeat_time": 1e300}, "repeat_time: found 1e\\+300, expected between 0 and 1000000"),
        ({"weight": 0}, "weight is 0, expected a number above 0"),
        ({"weight": [1]}, "weight: found a list, expected a number"),
        ({"data_augment": 1}, "data_augment: found 1, expected true or false"),
        ({"dynamic_image_size": "yes"}, "dynamic_image_size: found the text 'yes', expected true or false"),
        ({"root": 5}, "root: found 5, expected text"),
        ({"root2": ["a"]}, "root2: found a list, expected text"),
        ({"http_root": {}}, "http_root: found an object, expected text"),
        ({"annotation": 7}, "annotation: found 7, expected text"),
        ({"annotation": "\0.jsonl"}, "annotation is '.x00.jsonl', which is no path"),
        ({"annotation": "/dev/zero.jsonl"}, "no such file"),
        ({"root": "\ud83d"}, "root is '.ud83d', which is no path"),
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
    entry = json.dumps({"annotation": str(tmp_path / "a.jsonl"), "data_augment": False, "repeat_time": 1})
    for content, message in (
        ("[]", "holds a list, expected an object"),
        ("{}", "found an empty one"),
        ('{"a": 5}', "dataset 'a': found a whole number, expected an object"),
        (f'{{"a": {entry}, "a": {entry}}}', "'a' stands twice"),
        (f'{{"": {entry}}}', "expected a name of 1 to 255 characters that can be shown"),
        (f'{{"\\u001b[31m": {entry}}}', r"dataset '.x1b\[31m': expected a name"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a": NaN}', "NaN is no number"),
    ):
        (tmp_path / "meta.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_data_list(tmp_path / "meta.json")
    (tmp_path / "meta.json").write_bytes(b'{"a\xff": 1}')
    with pytest.raises(ConfigError, match="not UTF-8: byte 3"):
        read_data_list(tmp_path / "meta.json")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_an_annotation_that_is_no_file(tmp_path, kind):
    path, entry = tmp_path / "b.jsonl", {"data_augment": False, "repeat_time": 1}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    (tmp_path / "list.json").write_text(json.dumps({"set": {**entry, "annotation": str(path)}}))
    with pytest.raises(ConfigError, match=rf"b.jsonl: a {kind}, expected a"):
        read_data_list(tmp_path / "list.json")
    with pytest.raises(DataError, match=rf"b.jsonl: a {kind}, expected a"):
        len(Dataset("d", str(path)))


def test_a_line_without_end(tmp_path, monkeypatch):
    """It is refused by its number, the others are read, and memory holds no more of it than may be read."""
    monkeypatch.setattr("megatron_v2pe.data.annotations.LARGEST_LINE", 1000)
    row = {"conversations": ASK}
    long = {"conversations": [{"from": "human", "value": "a " * 100_000}, ASK[1]]}
    (dataset,) = read_data_list(write(tmp_path, [row, long, row]))
    assert [dataset.id_of(index).line for index in range(3)] == [1, 2, 3]
    assert dataset.read(0) and dataset.read(2)
    with pytest.raises(DataError, match="a line of more than 1000 bytes"):
        dataset.read(1)
    for block in dataset.blocks(128, 4000):
        for number, line in block.read(dataset.annotation):
            assert number == 2 or dataset.parse(line, number)


def test_fields_that_are_not_used_may_hold_anything(tmp_path):
    row = {"id": float("nan"), "more": [[1e400]], "conversations": [{**ASK[0], "weight": None}, ASK[1]]}
    (dataset,) = read_data_list(write(tmp_path, [row, {"image": [], "video": None, "clip": None, **row}]))
    assert not dataset.read(0).images and not dataset.read(1).images
