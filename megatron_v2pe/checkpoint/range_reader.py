"""Bytes of a file, read to memory of the caller's: nothing is mapped, so nothing of the file counts as memory in use.

Pages of a mapped file that were looked at stay in a process's resident memory. A conversion that maps its source grows
to the source's size; one that reads stays as small as its buffers. What lies in the system's page cache is read from
there; a large range that does not is read past it, which takes a tenth of the processor time that finding pages for it
does (`appended_file.py` writes so).
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import numpy as np

from megatron_v2pe.checkpoint.appended_file import PAGE, UNSUPPORTED, address_of
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable

_WORTH = 1 << 20
"""Bytes from which on a range is worth a look whether it is in the cache."""
_STEP = 8 << 20
_of_thread = threading.local()


class RangeReader:
    """Reads ranges of one file; several threads may use one at a time of their own."""

    def __init__(self, path: Path, direct: bool = True) -> None:
        """Name a file; it is opened with the first read.

        Args:
            path: the file.
            direct: read past the page cache what is not in it, where the file system can.
        """
        self._path, self._direct = path, direct and hasattr(os, "O_DIRECT") and hasattr(os, "RWF_NOWAIT")
        self._descriptor: int | None = None
        self._past: int | None = None
        self._opening = threading.Lock()

    def __del__(self) -> None:
        """Close the file."""
        for descriptor in (self._descriptor, self._past):
            if descriptor is not None:
                os.close(descriptor)

    def read_into(self, begin: int, out: memoryview) -> None:
        """Fill `out` with the bytes of the file from byte `begin` on.

        Raises:
            CheckpointError: the file cannot be read, or ends before.
        """
        try:
            descriptor, done = self._open(), 0
            if len(out) >= _WORTH and self._direct and not _cached(descriptor, begin + len(out) // 2):
                done = self._read_past(begin, out)
            while done < len(out):
                count = os.preadv(descriptor, [out[done:]], begin + done)
                if not count:
                    raise CheckpointError(f"{printable(self._path)}: truncated while it was read")
                done += count
        except OSError as error:
            raise CheckpointError(f"{printable(self._path)}: cannot be read: {error.strerror}") from error

    def _open(self) -> int:
        with self._opening:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptor

    def _read_past(self, begin: int, out: memoryview) -> int:
        """Read as much as can be had past the cache; return how much that is: none, where the file system cannot."""
        if (past := self._open_past()) is None:
            return 0
        head = -begin % PAGE
        if address_of(out) % PAGE == begin % PAGE and len(out) - head >= PAGE:
            return self._read_to_its_place(past, begin, out, head)
        if not hasattr(_of_thread, "stage"):
            _of_thread.stage = mmap.mmap(-1, _STEP)  # begins at a page, as the system wants it
        stage, target, done = memoryview(_of_thread.stage), np.frombuffer(out, np.uint8), 0
        while done < len(out):
            skipped = (begin + done) % PAGE
            try:
                wanted = min(_STEP, -(-(skipped + len(out) - done) // PAGE) * PAGE)
                found = os.preadv(past, [stage[:wanted]], begin + done - skipped) - skipped
            except OSError as error:
                if error.errno in UNSUPPORTED:  # a file system that opens a file so and does not read it
                    return done
                raise
            if found <= 0:
                return done
            count = min(found, len(out) - done)
            np.copyto(target[done : done + count], np.frombuffer(stage, np.uint8, count, skipped))
            done += count
        return done

    def _read_to_its_place(self, past: int, begin: int, out: memoryview, head: int) -> int:
        """Read whole pages past the cache to memory that lies as they do, after the bytes before the first."""
        done, end = 0, head + (len(out) - head) // PAGE * PAGE
        descriptor = self._open()
        while done < head:
            count = os.preadv(descriptor, [out[done:head]], begin + done)
            if not count:
                return done
            done += count
        while done < end and (done - head) % PAGE == 0:
            try:
                count = os.preadv(past, [out[done:end]], begin + done)
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    break
                raise
            if not count:
                break
            done += count
        return done

    def _open_past(self) -> int | None:
        with self._opening:
            if self._past is None and self._direct:
                try:
                    self._past = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    self._direct = False
            return self._past


def _cached(descriptor: int, place: int) -> bool:
    """Tell whether a byte of a file can be had without waiting for the disk; also where the system does not say."""
    try:
        os.preadv(descriptor, [bytearray(1)], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True
