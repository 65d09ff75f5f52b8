"""Files that only grow, with a journal of what has been completed, so that a build goes on where it was killed.

After each piece of work all files are flushed and one line of the journal notes their sizes and checksums, and its own.
When the files are opened again they are read once and compared: what was written after the last line is cut off, and
so is everything from the first piece on that is not what was written, for it can be done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import xxhash

from megatron_v2pe.base.exit_status import NO_SPACE
from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import progress_bar
from megatron_v2pe.data.indexed.checksums import BLOCK, BlockSums
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import lines, parse_json

_log = get_logger(__name__)
JOURNAL = "journal.jsonl"
_COPY_BYTES = 1 << 20
_CHECK = b', "check": "%s"}\n'
_CHECK_BYTES = len(_CHECK % (b"0" * 16))


@dataclass(frozen=True)
class _Entry:
    """A line of the journal."""

    sizes: dict[str, Annotated[int, Range(0)]]
    """Bytes of every file."""
    sums: dict[str, str]
    """Checksum of these."""
    note: dict[str, Any]
    """What was done."""


class Streams:
    """Some files of a folder, appended to together."""

    def __init__(self, folder: Path, names: Sequence[str], seed: int = 0, large: Collection[str] = ()) -> None:
        """Open the files, each cut to what the journal vouches for and what is there as it was written.

        Args:
            folder: of the files.
            names: of the files.
            seed: of the journal's checksums: the journal of something else is not taken for this one's.
            large: files whose blocks' checksums are not wanted.

        Raises:
            DataError: a file is no regular file, or cannot be read.
        """
        self._folder, self._seed = folder, seed
        self._sums = {name: BlockSums(name not in large) for name in names}
        try:
            for name in (*names, JOURNAL):
                if os.path.lexists(folder / name):
                    check_regular(folder / name, DataError)
            entries, ends, lost = self._journal_lines(names)
        except DataError as error:
            raise DataError(f"{error}; delete {printable(folder)} to start anew") from error
        good = self._count_good(names, entries)
        if lost := lost + len(entries) - good:
            _log.warning(
                "%s: %d pieces of work that were noted are damaged, or come after one that is; they are done again",
                *(printable(folder), lost),
            )
        sizes = entries[good - 1].sizes if good else dict.fromkeys(names, 0)
        self.notes: list[dict[str, Any]] = [entry.note for entry in entries[:good]]
        """What was noted with each piece of work, in order."""
        self._files = {name: open(folder / name, "ab") for name in names}
        self._journal = open(folder / JOURNAL, "ab")
        self._cut(self._journal, ends[good - 1] if good else 0)
        for name, file in self._files.items():
            self._cut(file, sizes[name])

    def size(self, name: str) -> int:
        """Return how long a file is by now."""
        return self._files[name].tell()

    def __contains__(self, name: str) -> bool:
        """Tell whether a file is among them."""
        return name in self._files

    def sums(self, name: str) -> BlockSums:
        """Return the checksums of a file."""
        return self._sums[name]

    def append(self, name: str, content: bytes | memoryview) -> None:
        """Write to the end of a file."""
        with room(self._folder / name):
            self._files[name].write(content)
            self._sums[name].update(content)

    def copy(self, name: str, source: str, sha256: bytes) -> None:
        """Append a file.

        Raises:
            DataError: it has another checksum by now.
        """
        digest = hashlib.sha256()
        check_regular(source, DataError)
        with room(self._folder / name), open(source, "rb") as stream:
            while block := stream.read(_COPY_BYTES):
                digest.update(block)
                self.append(name, block)
        if digest.digest() != sha256:
            raise DataError(f"{printable(source)}: changed while the data set was built; run the same command again")

    def reset(self) -> None:
        """Forget all that was written."""
        for file in (*self._files.values(), self._journal):
            self._cut(file, 0)
        self._sums = {name: BlockSums(sums.keep) for name, sums in self._sums.items()}
        self.notes.clear()

    def commit(self, note: dict[str, Any]) -> None:
        """Note that a piece of work is complete."""
        with room(self._folder / JOURNAL):
            for file in self._files.values():
                file.flush()
            sizes = {name: file.tell() for name, file in self._files.items()}
            sums = {name: sums.digest() for name, sums in self._sums.items()}
            body = json.dumps({"sizes": sizes, "sums": sums, "note": note}).encode()[:-1]
            self._journal.write(body + _CHECK % self._line_sum(body))
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

    def _line_sum(self, body: bytes) -> bytes:
        return xxhash.xxh3_64_hexdigest(body, self._seed).encode()

    def _journal_lines(self, names: Sequence[str]) -> tuple[list[_Entry], list[int], int]:
        """Return the lines up to one that is damaged or torn, where each ends, and how many are damaged or follow."""
        entries, ends, end, lost, path = list[_Entry](), list[int](), 0, 0, self._folder / JOURNAL
        if not path.exists():
            return [], [], 0
        for number, line in lines(path, DataError):
            body = line[:-_CHECK_BYTES]
            if lost or line[-_CHECK_BYTES:] != _CHECK % self._line_sum(body):
                lost += line.endswith(b"\n")  # a kill leaves half a line
                continue
            source = f"{printable(path)}:{number}"
            entry = typed(_Entry, parse_json(line, source, DataError), source, DataError, unknown=True)
            if set(entry.sizes) != set(names) or set(entry.sums) != set(names):
                lost += 1
                continue
            end += len(line)
            entries.append(entry)
            ends.append(end)
        return entries, ends, lost

    def _count_good(self, names: Sequence[str], entries: Sequence[_Entry]) -> int:
        """Return how many pieces of work are on the disk as they were noted; read the checksums of the files."""
        if not entries:
            return 0
        good, total = len(entries), sum(entries[-1].sizes.values())
        with progress_bar(total=total, desc="checking what is there", unit="B", unit_scale=True, delay=1.0) as bar:
            counts = [self._follow(name, [entry.sizes[name] for entry in entries], entries, bar) for name in names]
        good = min(counts)
        if good < len(entries):  # the checksums have seen more than is kept
            self._sums = {name: BlockSums(sums.keep) for name, sums in self._sums.items()}
            for name in names if good else ():
                self._follow(
                    name,
                    [entry.sizes[name] for entry in entries[:good]],
                    entries,
                    progress_bar(total=None, desc="", unit="", disable=True),
                )
        return good

    def _follow(self, name: str, sizes: Sequence[int], entries: Sequence[_Entry], bar: Any) -> int:
        """Return how many of the first entries a file agrees with."""
        path, sums, done = self._folder / name, self._sums[name], 0
        if not path.exists():
            path.touch()
        with open(path, "rb") as stream:
            for number, size in enumerate(sizes):
                while done < size:
                    content = stream.read(min(size - done, BLOCK))
                    if not content:
                        return number
                    sums.update(content)
                    done += len(content)
                    bar.update(len(content))
                if done != size or sums.digest() != entries[number].sums[name]:
                    return number
        return len(sizes)

    @staticmethod
    def _cut(file: Any, size: int) -> None:
        file.truncate(size)
        file.seek(0, os.SEEK_END)


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Raise what a full disk raises while `path` is written as DataError with the numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free = shutil.disk_usage(path.parent).free
        raise DataError(
            f"{printable(error.filename or path)}: {os.strerror(error.errno)}, {free} bytes are free; "
            "make room and run the same command again, it goes on from here"
        ) from error
