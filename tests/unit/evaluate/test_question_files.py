"""Question files: what is damaged, missing or of another version is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate import embedded_images
from megatron_v2pe.evaluate.questions.files import (
    json_lines,
    json_records,
    literal_list,
    parquet_rows,
    read_json,
    tsv_rows,
)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_with_empty_lines_and_windows_endings(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\r\n\r\n{"a": 2, "b": "\u00e9"}')
    assert list(json_lines(path, {"a": int})) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2, "b": "\u00e9"})]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"a": ', ":2: not valid JSON"),
        (b'{"a": "\xff"}', ":2: not UTF-8"),
        ("[1]", ":2: expected an object, found a list"),
        ('{"b": 1, "c": 2}', ":2: no 'a', only 'b', 'c': another version of the file"),
        ('{"a": "x"}', ":2: 'a' is 'x', expected a number"),
    ],
)
def test_damaged_json_lines(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", b'{"a": 1}\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(DataError, match=f"{path}{message}"):
        list(json_lines(path, {"a": int}))


def test_missing_and_damaged_json(tmp_path):
    with pytest.raises(DataError, match="none.json: no such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="a.json: not valid JSON"):
        read_json(write(tmp_path / "a.json", "{"))
    with pytest.raises(DataError, match="a.json: expected a list of records, found an object"):
        list(json_records(tmp_path / "a.json", {}, {}))
    with pytest.raises(DataError, match="a.json, record 1: 'a' is 'None', expected text or a list"):
        list(json_records(tmp_path / "a.json", [{"a": "x"}, {"a": None}], {"a": (str, list)}))


def test_tsv_with_quoted_cells(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufeffa\tb\n1\t"two\nlines ""quoted"""\n2\tan "inner" quote\n')
    assert list(tsv_rows(path, ("a", "b"))) == [
        (f"{path}:2", {"a": "1", "b": 'two\nlines "quoted"'}),
        (f"{path}:4", {"a": "2", "b": 'an "inner" quote'}),
    ]


def test_damaged_tsv(tmp_path):
    with pytest.raises(DataError, match="a.tsv:1: no 'c', only 'a', 'b'"):
        list(tsv_rows(write(tmp_path / "a.tsv", "a\tb\n"), ("a", "c")))
    with pytest.raises(DataError, match="a.tsv:3: 1 cells, but the header has 2"):
        list(tsv_rows(write(tmp_path / "a.tsv", "a\tb\n1\t2\n3\n"), ("a",)))
    with pytest.raises(DataError, match="a.tsv:2: not UTF-8"):
        list(tsv_rows(write(tmp_path / "a.tsv", b"a\tb\n\xff\t2\n"), ("a",)))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a.parquet: Parquet files need PyArrow: .*pip install -e '.\[eval\]'"):
        list(parquet_rows(tmp_path / "a.parquet", {}))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet files need the eval extra")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": list(range(40)), "b": [b"x"] * 40}), path)
    rows = list(parquet_rows(path, {"a": int}))
    assert [row["a"] for _, row in rows] == list(range(40)) and rows[17][0] == f"{path}, row 17"
    with pytest.raises(DataError, match="a.parquet: no 'c', only 'a', 'b'"):
        list(parquet_rows(path, {"c": int}))
    with pytest.raises(DataError, match="a.parquet, row 0: 'a' is '0', expected text"):
        list(parquet_rows(path, {"a": str}))
    write(path, path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.parquet: damaged Parquet file"):
        list(parquet_rows(path, {"a": int}))


def test_literal_lists():
    assert literal_list("here", "['a', \"b's\"]") == ["a", "b's"]
    for text in ("{'a': 1}", "['a'", "open('x')"):
        with pytest.raises(DataError, match="here: .* is not a list"):
            literal_list("here", text)


def test_embedded_images(tmp_path):
    source = tmp_path / "a.png"
    Image.new("RGB", (3, 4)).save(source)
    path = embedded_images.store_image(source.read_bytes(), tmp_path / "cache", "here")
    assert Path(path).read_bytes() == source.read_bytes() and path.endswith(".png")
    Path(path).write_bytes(b"torn")  # a file of another size is written again
    assert embedded_images.store_image(source.read_bytes(), tmp_path / "cache", "here") == path
    assert Path(path).read_bytes() == source.read_bytes()
    assert [file.name for file in Path(path).parent.iterdir()] == [Path(path).name]
    with pytest.raises(DataError, match="here: 4 bytes that are no image"):
        embedded_images.store_image(b"nope", tmp_path / "cache", "here")
