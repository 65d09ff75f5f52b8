"""Notes of what is being asked, so that a question that ends its run is not asked again and again.

A process can end over a question without a chance to say so: the system kills what takes too much memory, and where a
model is spread over several processes, one that runs out of memory leaves the others in the middle of an exchange. Each
process that writes answers therefore keeps a note, `asking-NNNNN.json`, of what it asks now and of how many runs have
ended over which question. Notes that are there when a run begins are those of runs that were ended. A question found in
one is asked last and alone; found twice, it is recorded as failed and not asked again.

Any kill leaves notes, also one by an impatient user. That does no harm: a question is given up after two kills, and two
kills by hand do not meet the same question by chance, since it is asked last the second time. A run that is interrupted
from the keyboard, or stops with a message, leaves none. A note has a checksum: a damaged one could give a question up
that nobody has asked, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import CommunicationError, DataError, V2PEError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import seal, unseal
from megatron_v2pe.foreign.text import kind_of, parse_json

MOST_ENDS = 2
"""Runs a question may end before it is given up."""


@dataclass(frozen=True)
class _Note:
    """The content of a note."""

    asking: tuple[str, ...]
    ended: dict[str, Annotated[int, Range(0, 1000)]]


class AskingNote:
    """The note of one process that writes answers."""

    def __init__(self, folder: Path, writer: int, ended: Mapping[str, int]) -> None:
        """Remember where it is.

        Args:
            folder: of the benchmark.
            writer: number of this process among those that write.
            ended: what `ended_runs` gave when this run began.
        """
        self._path = folder / f"asking-{writer:05d}.json"
        self._ended = dict(ended)

    def put(self, ids: Sequence[str]) -> None:
        """Note that these questions are being asked; none: that nothing is."""
        write_text(self._path, json.dumps(seal({"asking": list(ids), "ended": self._ended})))


def ended_runs(folder: Path) -> dict[str, int]:
    """Return how many runs ended while a question was being asked, of every question some run ended over.

    Every note carries the counts its run began with, so that reading notes twice, or old ones, counts nothing twice.

    Raises:
        DataError: a note is damaged; names it. One that a crash of the whole machine has emptied is passed over.
    """
    counts: dict[str, int] = {}
    for path in sorted(folder.glob("asking-*.json")):
        if not (content := read_bytes(path, DataError)).strip(b" \r\n\0"):
            continue
        note = _read(content, printable(path))
        asking = set(note.asking)
        for name in {*note.ended, *asking}:
            counts[name] = max(counts.get(name, 0), note.ended.get(name, 0) + (name in asking))
    return counts


def _read(content: bytes, source: str) -> _Note:
    try:
        note = parse_json(content, source, DataError, unique=True)
        if not isinstance(note, dict):
            raise DataError(f"{source}: found {kind_of(note)}, expected an object")
        return typed(_Note, unseal(note, source, DataError), source, DataError)
    except DataError as problem:
        raise DataError(
            f"{problem}. Remove the file: which questions have ended a run before is then learned anew"
        ) from problem


def is_clean_exit(error: BaseException) -> bool:
    """Return whether an error that ends this process says nothing against the question that was being asked.

    An interrupt, a refused system call and an error a user can mend say nothing against it. Where another process has
    ended, the question may have ended that one.
    """
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit, OSError, V2PEError))
    return stopped and not isinstance(error, CommunicationError)


def remove_notes(folder: Path) -> None:
    """Remove all notes: a run has come to its end."""
    for path in folder.glob("asking-*"):
        path.unlink(missing_ok=True)
