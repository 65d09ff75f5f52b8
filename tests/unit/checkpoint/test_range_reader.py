"""Ranges read past the page cache are those that plain reading gives, wherever they begin, end and go.

The kinds of fault: a range that begins within a page is shifted, its end is cut off or that of the file is overrun, a
file system without `O_DIRECT` is refused.
"""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np
import pytest

from megatron_v2pe.checkpoint import range_reader
from megatron_v2pe.checkpoint.appended_file import PAGE
from megatron_v2pe.checkpoint.hf.kept_shards import KeptShards
from megatron_v2pe.checkpoint.range_reader import RangeReader
from megatron_v2pe.errors import CheckpointError

SIZE = (10 << 20) + 123
RANGES = ((0, SIZE), (5, 9 << 20), (PAGE, 2 << 20), (PAGE + 77, SIZE - PAGE - 77), (SIZE - (1 << 20), 1 << 20), (9, 40))


@pytest.fixture
def file(tmp_path):
    content = np.random.default_rng(3).integers(0, 256, SIZE, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    return tmp_path / "file", content


@pytest.fixture
def nothing_cached(monkeypatch):
    monkeypatch.setattr(range_reader, "_cached", lambda *_: False)


def read(reader, begin, length, skipped=0):
    memory = mmap.mmap(-1, SIZE + 2 * PAGE)
    out = memoryview(memory)[skipped : skipped + length]
    reader.read_into(begin, out)
    assert not any(memory[skipped + length :]) and not any(memory[:skipped])
    return bytes(out)


@pytest.mark.usefixtures("nothing_cached")
def test_both_ways_read_the_same_bytes(file, monkeypatch):
    """Planted break: with every range taken from the first byte of its page those that begin within one are shifted."""
    path, content = file
    monkeypatch.setattr(range_reader, "_STEP", 3 << 20)
    monkeypatch.delattr(range_reader._of_thread, "stage", raising=False)
    for begin, length in RANGES:
        for skipped in (0, 13, begin % PAGE):
            for direct in (True, False):
                assert read(RangeReader(path, direct), begin, length, skipped) == content[begin : begin + length]
    del range_reader._of_thread.stage  # others take longer steps


@pytest.mark.usefixtures("nothing_cached")
def test_memory_that_lies_as_the_file_does_is_filled_from_the_disk(file, monkeypatch):
    path, content = file
    reader = RangeReader(path)
    reader._open()
    if reader._open_past() is None:
        pytest.skip("the file system has no O_DIRECT")
    copied = []
    monkeypatch.setattr(range_reader.np, "copyto", lambda *_: copied.append(1))
    shards = KeptShards(8 << 20, 2)
    for begin in (100, 1 << 20, 12345):
        loaded = shards.load(("file", begin), 8 << 20, lambda out, begin=begin: reader.read_into(begin, out))
        assert loaded is not None and bytes(loaded) == content[begin : begin + (8 << 20)]
    assert not copied
    assert shards.find(("file", 100)) is None and shards.find(("file", 1 << 20)) is not None  # the first one went
    assert shards.load(("file", 0), (8 << 20) + 1, lambda out: None) is None


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.parametrize("refused", ["opening", "reading"])
def test_a_file_system_that_refuses_is_read_plainly(file, monkeypatch, refused):
    path, content = file
    reader, real_open, real_read = RangeReader(path), os.open, os.preadv

    def opened(path, flags, *mode):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode)

    def preadv(descriptor, *arguments):
        if descriptor == reader._past:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(descriptor, *arguments)

    monkeypatch.setattr(range_reader.os, *(("open", opened) if refused == "opening" else ("preadv", preadv)))
    for begin, length in RANGES:
        for skipped in (0, begin % PAGE):
            assert read(reader, begin, length, skipped) == content[begin : begin + length]


@pytest.mark.usefixtures("nothing_cached")
def test_a_file_that_ends_before_is_refused(file):
    path, _ = file
    for begin in (0, 77):
        for skipped in (0, 77):
            with pytest.raises(CheckpointError, match="file: truncated while it was read"):
                read(RangeReader(path), begin, SIZE + PAGE - 100, skipped)
