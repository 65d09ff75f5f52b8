"""Bytes of a file, read to memory of the caller's: nothing is mapped, so nothing of the file counts as memory in use.

Pages of a mapped file that were looked at stay in a process's resident memory. A conversion that maps its source grows
to the source's size; one that reads stays as small as its buffers.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable


class RangeReader:
    """Reads ranges of one file; several threads may use one at a time of their own."""

    def __init__(self, path: Path) -> None:
        """Name a file; it is opened with the first read."""
        self._path = path
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    def __del__(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def read_into(self, begin: int, out: memoryview) -> None:
        """Fill `out` with the bytes of the file from byte `begin` on.

        Raises:
            CheckpointError: the file cannot be read, or ends before.
        """
        try:
            descriptor, done = self._open(), 0
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
