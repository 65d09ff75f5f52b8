"""A file that grows at its end, written past the system's page cache where the file system allows that.

A checkpoint is written once and seldom read soon. Through the page cache the system first finds a page for every 4 KiB,
which takes more processor time than all else (docs/performance.md, "Converting"), and drops what other programs had
there. `O_DIRECT` hands the bytes to the device. It takes whole blocks alone, from memory that begins at a page: whole
pages of a large piece go that way, what is left at both ends goes through the cache, so that no page goes both ways.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import queue
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from megatron_v2pe.base.whole_files import naming

PAGE = mmap.PAGESIZE
_WORTH = 1 << 20
"""Bytes from which on a piece goes past the cache."""
_STEP = 8 << 20
_THREADS = 2
"""Steps that are under way at once: the device has more to do while one is handed over."""
_THROUGH_CACHE = 128 << 10
"""Bytes of one write through the cache: with more the system takes longer for every byte (0.37 s/GB, 1 MiB: 1.1)."""
UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that cannot do what it is asked for."""


class AppendedFile:
    """Appends to a file; whatever `write` was given is with the system when it returns, and stays after a kill."""

    def __init__(self, path: Path, kept: int = 0, direct: bool = True) -> None:
        """Open a file.

        Args:
            path: the file; its folder is there.
            kept: bytes of a file that is there already which stay; it is cut off behind them.
            direct: whether to write past the page cache where the file system can; otherwise all goes through it.

        Raises:
            OSError: the system refuses; names the file.
        """
        self._path, self.place = path, kept
        with naming(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC | (0 if kept else os.O_CREAT), 0o666)
        self._past: int | None = None
        self._reserves = True
        self._threads: ThreadPoolExecutor | None = None
        self._stages: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        try:
            with naming(path):
                os.ftruncate(self._file, kept)
            if direct and hasattr(os, "O_DIRECT"):
                self._past = self._open_past()
            self._block = max(PAGE, os.fstat(self._file).st_blksize)
        except BaseException:
            self.close()
            raise

    def write(self, content: Any, /) -> int:
        """Append bytes, which may change when this returns; return how many they are.

        Raises:
            OSError: the system refuses, for example because the disk is full; names the file.
        """
        view = memoryview(content).cast("B")
        low, high = -(-self.place // self._block) * self._block, (self.place + len(view)) // self._block * self._block
        with naming(self._path):
            if self._past is None or high - low < _WORTH:
                self._write_through(self.place, view)
            else:
                head, tail = low - self.place, high - self.place
                self._write_through(self.place, view[:head])
                self._write_past(self._past, low, view[head:tail])
                self._write_through(high, view[tail:])
        self.place += len(view)
        return len(view)

    def sync(self) -> None:
        """Wait until all is on the disk."""
        with naming(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file, once or more often."""
        if self._threads is not None:
            self._threads.shutdown()
        for descriptor in (self._past, self._file):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._past, self._file = None, -1

    def _open_past(self) -> int | None:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return None
            raise

    def _write_through(self, begin: int, content: memoryview) -> None:
        for at in range(0, len(content), _THROUGH_CACHE):
            _write_all(self._file, begin + at, content[at : at + _THROUGH_CACHE])

    def _write_past(self, past: int, begin: int, content: memoryview) -> None:
        self._reserve(past, begin, len(content))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "writes")
            for _ in range(_THREADS):
                self._stages.put(mmap.mmap(-1, _STEP))  # begins at a page
        aligned = address_of(content) % PAGE == 0

        def step(at: int) -> None:
            self._write_step(past, begin + at, content[at : at + _STEP], aligned)

        steps = [self._threads.submit(step, at) for at in range(0, len(content), _STEP)]
        wait(steps)  # also after an error: what is written may be gone once this returns
        for one in steps:
            one.result()

    def _write_step(self, past: int, begin: int, content: memoryview, aligned: bool) -> None:
        stage = None if aligned else self._stages.get()
        try:
            if stage is not None:
                part = memoryview(stage)[: len(content)]
                np.copyto(np.frombuffer(part, np.uint8), np.frombuffer(content, np.uint8))  # others may run meanwhile
                content = part
            try:
                _write_all(past, begin, content)
            except OSError as error:  # a file system that opens a file so and does not write it
                if error.errno not in UNSUPPORTED:
                    raise
                self._write_through(begin, content)
        finally:
            if stage is not None:
                self._stages.put(stage)

    def _reserve(self, past: int, begin: int, length: int) -> None:
        """Have the file system find room for some bytes at once, after which several threads can write there."""
        if not self._reserves:
            return
        self._reserves = _reserved(past, begin, length)


def _call_that_reserves() -> Any:
    """Return Linux's own call, None where there is none.

    The C library's `posix_fallocate` writes a byte to every 4 KiB where a file system cannot reserve: on NFS that is a
    request to the server for each of them.
    """
    library = ctypes.CDLL(None, use_errno=True)
    found = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


_fallocate = _call_that_reserves()


def _reserved(descriptor: int, begin: int, length: int) -> bool:
    """Reserve room for some bytes; return whether the file system can."""
    while _fallocate is not None:
        if not _fallocate(descriptor, 0, begin, length):
            return True
        number = ctypes.get_errno()
        if number in UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return False


def _write_all(descriptor: int, begin: int, content: memoryview) -> None:
    while len(content):
        count = os.pwrite(descriptor, content, begin)
        begin, content = begin + count, content[count:]


def address_of(content: memoryview) -> int:
    """Return where some bytes lie in memory."""
    return int(np.frombuffer(content, np.uint8).__array_interface__["data"][0])
