"""Files that only grow, with a journal of what has been completed, so that a build goes on where it was killed.

After each piece of work all files are flushed and one line of the journal notes their sizes. What was written after the
last line is cut off when the files are opened again.
"""

from __future__ import annotations

import errno
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
        with self._room(name):
            self._files[name].write(content)

    def copy(self, name: str, source: str, size: int) -> None:
        """Append a file of `size` bytes.

        Raises:
            DataError: it has another size by now.
        """
        before = self._files[name].tell()
        with self._room(name), open(source, "rb") as stream:
            shutil.copyfileobj(stream, self._files[name], _COPY_BYTES)
        if (copied := self._files[name].tell() - before) != size:
            raise DataError(f"{source}: changed while the data set was built: {copied} bytes, {size} before")

    def commit(self, note: dict[str, Any]) -> None:
        """Note that a piece of work is complete."""
        with self._room(JOURNAL):
            for file in self._files.values():
                file.flush()
            sizes = {name: file.tell() for name, file in self._files.items()}
            self._journal.write(json.dumps({"sizes": sizes, "note": note}, ensure_ascii=False).encode() + b"\n")
            self._journal.flush()
        self.notes.append(note)

    def close(self, sync: bool = False) -> None:
        """Close all files, with `sync` only once they are on the disk."""
        for file in (*self._files.values(), self._journal):
            with self._room(file.name):
                file.flush()
                if sync:
                    os.fsync(file.fileno())
                file.close()

    @contextmanager
    def _room(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            free = shutil.disk_usage(self._folder).free
            raise DataError(
                f"{self._folder / Path(name).name}: {os.strerror(error.errno)}, {free} bytes are free; "
                "make room and run the same command again, it goes on from here"
            ) from error


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file up to one that is torn."""
    with open(path, "rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            yield line
