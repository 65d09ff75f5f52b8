"""What an unfinished conversion has done: lines beside its files, so that the same command goes on where it was killed.

A conversion writes to a hidden folder beside its target, `.TARGET.writing`, which holds a lock, the journal and the
folder that will be the target. The journal begins with what is converted, and how; whoever finds one of something else
discards it. What a line says was written is compared with its checksum before it is relied on.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.base.whole_files import naming, put_in_place, write_text
from megatron_v2pe.checkpoint.folder import check_target, remove_left_over
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import parse_json

_JOURNAL, _WHOLE = "journal.jsonl", "folder"
_LARGEST = 1 << 30
_log = get_logger(__name__)


@dataclass
class Journal:
    """The lines of a conversion; several threads may add some."""

    path: Path
    identity: Mapping[str, Any]
    """What is converted, and how."""
    found: list[dict[str, Any]] = field(default_factory=list)
    """Lines that an earlier process has left."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Read what an earlier process has left of the same conversion; start anew where it was of another."""
        lines = self._lines()
        if lines and lines[0] == {"converts": dict(self.identity)}:
            self.found = lines[1:]
        text = [json.dumps(line) for line in ({"converts": self.identity}, *self.found)]
        write_text(self.path, "\n".join(text) + "\n")  # without a last line that was cut off

    def of_another(self) -> str | None:
        """Return which source an earlier process has left something of, where it is not this conversion."""
        lines = self._lines()
        first = lines[0].get("converts") if lines else None
        if first == dict(self.identity):
            return None
        return str(first.get("source")) if isinstance(first, dict) else "an unknown source"

    def add(self, **line: Any) -> None:
        """Add a line; what it says is written by now."""
        text = json.dumps(line) + "\n"
        with self._lock, naming(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines: list[dict[str, Any]] = []
        for text in read_bytes(self.path, CheckpointError, _LARGEST).split(b"\n"):
            try:
                line: Any = parse_json(text, printable(self.path), CheckpointError)
            except CheckpointError:  # the last one was cut off
                break
            if not isinstance(line, dict):
                break
            lines.append(line)
        return lines


def hidden_folder(target: Path) -> Path:
    """Return the folder that a conversion to `target` writes until it is whole."""
    return target.with_name(f".{target.name}.writing")


@dataclass(frozen=True)
class Unfinished:
    """The folder that a conversion writes, and its journal."""

    folder: Path
    journal: Journal


@contextmanager
def unfinished_folder(
    target: Path, overwrite: bool, marker: str, identity: Mapping[str, Any]
) -> Generator[Unfinished, None, None]:
    """Give a hidden folder to write into; it becomes `target` when the block ends without error.

    A process that is killed leaves the hidden folder, and the next with the same `identity` gets it again. After an
    error it is removed: what is wrong with a source does not go away, and a full disk needs the room.

    Args:
        target: the folder to create.
        overwrite: replace a folder that is there already.
        marker: file that only a folder of this kind holds; a folder without it is never replaced.
        identity: what is converted, and how: plain values; `source` is named in messages.

    Raises:
        CheckpointError: `target` exists and may not be replaced.
        InUseError: another process writes to it.
    """
    check_target(target, overwrite, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(target)
    hidden = hidden_folder(target)
    hidden.mkdir(exist_ok=True)
    lock = FolderLock(hidden, f"a conversion to {target.name}")
    lock.take()
    try:
        yield _begun(hidden, identity)
        put_in_place(hidden / _WHOLE, target, replace=True)
        _remove(hidden)
    except Exception:
        _remove(hidden)
        raise
    finally:
        lock.release()
        with suppress(OSError):  # what a killed process is to find again is still there
            hidden.rmdir()


def _begun(hidden: Path, identity: Mapping[str, Any]) -> Unfinished:
    journal, folder = Journal(hidden / _JOURNAL, identity), hidden / _WHOLE
    if folder.is_dir() and (other := journal.of_another()) is not None:
        _log.warning(
            "%s: holds an unfinished conversion of %s, or of other options; it is discarded",
            printable(hidden),
            printable(other),
        )
        _remove(hidden)
    journal.begin()
    if journal.found:
        _log.info("%s: an unfinished conversion of the same source; going on with it", printable(hidden))
    folder.mkdir(exist_ok=True)
    return Unfinished(folder, journal)


def _remove(hidden: Path) -> None:
    """Remove all but the lock."""
    shutil.rmtree(hidden / _WHOLE, ignore_errors=True)
    (hidden / _JOURNAL).unlink(missing_ok=True)


def stamps(folder: Path) -> list[list[Any]]:
    """Return name, size and time of change of every file of a folder: what tells two states of it apart."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [[path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
