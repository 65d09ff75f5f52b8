"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_v2pe.base import whole_files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    for text in ("grüße\n", "anew"):
        whole_files.write_text(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_what_fails_leaves_what_was_there(tmp_path, monkeypatch, broken):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_text("before")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space left on device"):
        whole_files.write_text(tmp_path / "a", "after", durable=True)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "before"


def test_a_refused_write_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, whole_files.naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space")
    assert caught.value.filename == str(tmp_path / "a")


def test_only_what_is_durable_waits_for_the_disk(tmp_path, monkeypatch):
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    whole_files.write_text(tmp_path / "a", "")
    assert not flushed
    whole_files.write_text(tmp_path / "a", "", durable=True)
    assert len(flushed) == 1


def test_many_writers_of_one_file(tmp_path):
    contents = [bytes([number]) * 10_000 for number in range(20)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: whole_files.write_bytes(tmp_path / "a", content, shared=True), contents))
    assert (tmp_path / "a").read_bytes() in contents and names(tmp_path) == ["a"]


def test_a_folder_is_put_in_place(tmp_path, monkeypatch):
    for text in ("first", "second"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text(text)
        whole_files.put_in_place(tmp_path / "new", tmp_path / "out", replace=True)
        assert names(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == text
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="not empty"):
        whole_files.put_in_place(tmp_path / "new", tmp_path / "out")

    def refuse(source: Path, target: Path, rename=os.replace) -> None:
        if target.name == "out" and source.name == "new":
            raise OSError(errno.EACCES, "refused")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="refused"):
        whole_files.put_in_place(tmp_path / "new", tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "file").read_text() == "second"
