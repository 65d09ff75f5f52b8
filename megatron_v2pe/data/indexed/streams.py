"""Files that only grow, with a journal of what has been completed, so that a build goes on where it was killed.

After each piece of work all files are flushed and one line of the journal notes their sizes. What was written after the
last line is cut off when the files are opened again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError

JOURNAL = "journal.jsonl"
_COPY_BYTES = 1 << 20


class Streams:
    """Some files of a folder, appended to together."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Open the files, each cut to what the journal vouches for.

        Raises:
            DataError: a file is shorter than the journal says.
        """
        self._folder = folder
        self.notes: list[dict[str, Any]] = []
        """What was noted with each piece of work, in order."""
        sizes = dict.fromkeys(names, 0)
        end = 0
        if (folder / JOURNAL).is_file():
            for line in _whole_lines(folder / JOURNAL):
                end += len(line)
                entry = json.loads(line)
                sizes = entry["sizes"]
                self.notes.append(entry["note"])
        self._files = {name: open(folder / name, "ab") for name in names}
        self._journal = open(folder / JOURNAL, "ab")
        self._journal.truncate(end)
        for name, file in self._files.items():
            if (found := file.tell()) < sizes[name]:
                raise DataError(
                    f"{folder / name}: {found} bytes, the journal says {sizes[name]}: damaged; delete {folder} to "
                    "start anew"
                )
            file.truncate(sizes[name])
            file.seek(0, os.SEEK_END)

    def size(self, name: str) -> int:
        """Return how long a file is by now."""
        return self._files[name].tell()

    def append(self, name: str, content: bytes | memoryview) -> None:
        """Write to the end of a file."""
        with room(self._folder / name):
            self._files[name].write(content)

    def copy(self, name: str, source: str, sha256: bytes) -> None:
        """Append a file.

        Raises:
            DataError: it has another checksum by now.
        """
        digest = hashlib.sha256()
        with room(self._folder / name), open(source, "rb") as stream:
            while block := stream.read(_COPY_BYTES):
                digest.update(block)
                self._files[name].write(block)
        if digest.digest() != sha256:
            raise DataError(f"{source}: changed while the data set was built; run the same command again")

    def reset(self) -> None:
        """Forget all that was written."""
        for file in (*self._files.values(), self._journal):
            file.truncate(0)
            file.seek(0)
        self.notes.clear()

    def commit(self, note: dict[str, Any]) -> None:
        """Note that a piece of work is complete."""
        with room(self._folder / JOURNAL):
            for file in self._files.values():
                file.flush()
            sizes = {name: file.tell() for name, file in self._files.items()}
            self._journal.write(json.dumps({"sizes": sizes, "note": note}, ensure_ascii=False).encode() + b"\n")
            self._journal.flush()
        self.notes.append(note)

    def close(self, sync: bool = False) -> None:
        """Close all files, with `sync` only once they are on the disk."""
        for file in (*self._files.values(), self._journal):
            with room(Path(file.name)):
                file.flush()
                if sync:
                    os.fsync(file.fileno())
                file.close()


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Raise what a full disk raises while `path` is written as DataError with the numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path.parent).free
        raise DataError(
            f"{error.filename or path}: {os.strerror(error.errno)}, {free} bytes are free; "
            "make room and run the same command again, it goes on from here"
        ) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file up to one that is torn."""
    with open(path, "rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            yield line
