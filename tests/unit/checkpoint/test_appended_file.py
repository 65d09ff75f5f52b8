"""Files written past the page cache hold the bytes that plain writing gives, wherever pieces begin and end.

The kinds of fault: the ends of a piece that are no whole page are lost or written twice, bytes of memory that is used
again are written, a file system without `O_DIRECT` is refused, a full disk is not named.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource

import numpy as np
import pytest

from megatron_v2pe.checkpoint import appended_file
from megatron_v2pe.checkpoint.appended_file import PAGE, AppendedFile

SIZES = (3, 2 << 20, 5000, (9 << 20) + 777, PAGE, 0, (1 << 20) + 1, 9 << 20)


def pieces():
    content = np.random.default_rng(5).integers(0, 256, sum(SIZES), np.uint8).tobytes()
    begins = np.cumsum((0, *SIZES[:-1]))
    return [content[begin : begin + size] for begin, size in zip(begins, SIZES, strict=True)]


def written(path, direct, kept=0, parts=None):
    file = AppendedFile(path, kept, direct)
    for part in parts or pieces():
        assert file.write(part) == len(part)
        assert path.stat().st_size == file.place  # with the system: a kill would leave it
    file.sync()
    file.close()
    return path.read_bytes()


def can_write_past(folder):
    file = AppendedFile(folder / "probe")
    past = file._past is not None
    file.close()
    return past


def test_both_ways_write_the_same_bytes(tmp_path):
    """Planted break: with `tail` a block too early the two differ."""
    expected = b"".join(pieces())
    assert written(tmp_path / "plain", direct=False) == expected
    assert written(tmp_path / "past", direct=True) == expected
    for kept in (1, PAGE, (3 << 20) + 5):
        (tmp_path / "past").write_bytes(expected + b"more")
        assert written(tmp_path / "past", True, kept) == expected[:kept] + expected


def test_large_pieces_leave_the_cache_alone(tmp_path, monkeypatch):
    """What goes through the cache is what is no whole page of a large piece."""
    if not can_write_past(tmp_path):
        pytest.skip("the file system has no O_DIRECT")
    through = []
    monkeypatch.setattr(AppendedFile, "_write_through", lambda file, begin, part: through.append(len(part)))
    file = AppendedFile(tmp_path / "file")
    for part in pieces():
        file.write(part)
    file.close()
    large = sum(size >= 2 << 20 for size in SIZES)
    assert sum(through) < sum(size for size in SIZES if size < 2 << 20) + 2 * large * PAGE


def test_memory_that_lies_as_the_file_does_is_not_copied(tmp_path, monkeypatch):
    if not can_write_past(tmp_path):
        pytest.skip("the file system has no O_DIRECT")
    memory = mmap.mmap(-1, 4 << 20)
    memory[:] = pieces()[-1][: 4 << 20]
    copied = []
    monkeypatch.setattr(appended_file.np, "copyto", lambda *_: copied.append(1))
    file = AppendedFile(tmp_path / "file")
    file.write(memoryview(memory)[:100])
    file.write(memoryview(memory)[100:])
    file.close()
    assert not copied and (tmp_path / "file").read_bytes() == memory[:]


@pytest.mark.parametrize("refused", ["opening", "writing", "reserving"])
def test_a_file_system_that_refuses_is_written_plainly(tmp_path, monkeypatch, refused):
    real_open, real_write = os.open, appended_file._write_all

    def opened(path, flags, *mode):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode)

    def write(descriptor, begin, content):
        if descriptor == file_past():
            raise OSError(errno.EINVAL, "Invalid argument")
        real_write(descriptor, begin, content)

    def reserve(*_):
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    files = []
    open_past = AppendedFile._open_past
    monkeypatch.setattr(AppendedFile, "_open_past", lambda file: files.append(file) or open_past(file))

    def file_past():
        return files[-1]._past

    what = {
        "opening": (appended_file.os, "open", opened),
        "writing": (appended_file, "_write_all", write),
        "reserving": (appended_file, "_fallocate", reserve),
    }
    monkeypatch.setattr(*what[refused])
    assert written(tmp_path / "file", direct=True) == b"".join(pieces())


def test_a_full_disk_is_named(tmp_path):
    """A limit on the size of files stands for it; what was there before stays."""
    process = os.fork()
    if not process:
        status = 255
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
            file = AppendedFile(tmp_path / "file")
            file.write(b"first")
            file.write(bytes(8 << 20))
            status = 0
        except OSError as error:
            named = error.filename == str(tmp_path / "file")
            status = error.errno if named and (tmp_path / "file").read_bytes()[:5] == b"first" else 254
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == errno.EFBIG
    with pytest.raises(OSError, match="nowhere"):
        AppendedFile(tmp_path / "nowhere" / "file")
