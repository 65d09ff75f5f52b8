"""Answers on disk: appended one by one by every process of a run, read back by the next, whatever its size.

Each process that writes has a file of its own, `answers-NNNNN.jsonl`; a line is written whole and flushed to the disk
before the next question is asked, and never changed afterwards. A line torn by a kill is cut off when its process
writes again. Every line has a checksum of its own (`foreign.seal`); lines of earlier versions have none and are
read all the same. A line that is damaged is named and refused: without it, its question is asked again.

A question that ended in an error may be asked again: of its lines an answer counts before an error, and of errors the
last. Where two answers are there (two runs at once), the first counts and the question is reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import CHECK, seal, unseal
from megatron_v2pe.foreign.text import json_line, kind_of, lines, parse_json
from megatron_v2pe.logging import get_logger

KILLED: Literal["killed"] = "killed"
"""`stopped` of a question that has ended its run too often to be asked once more, see `asking`."""
_ANSWER = 2
_WEIGHTS = {"error": 0, KILLED: 1}
Stopped = Literal["stop", "length", "error", "killed"]
"""Why generation ended."""
_Count = Annotated[int, Range(0)]
_log = get_logger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, with everything needed to see why."""

    id: str
    answer: str | None
    """None where there is none, see `error`."""
    prompt: str
    """The text the model read; an image stands as its first and last mark with its number of tiles."""
    num_tokens: _Count
    """Of the prompt."""
    num_tiles: _Count
    new_tokens: _Count
    seconds: Annotated[float, Range(0)]
    stopped: Stopped
    error: str | None = None
    positions: _Count | None = None
    """The prompt reaches, which under V2PE are fewer than its tokens."""


class AnswerLog:
    """The answers of one benchmark in a run's folder."""

    def __init__(self, folder: Path, writer: int | None = None) -> None:
        """Open a folder.

        Args:
            folder: of the benchmark; made if it is not there.
            writer: number of this process among those that write; None: only read.

        Raises:
            DataError: a line is damaged in the middle of a file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.answers: dict[str, Answer] = {}
        """What counts of each question, by its id."""
        self.duplicates: list[str] = []
        """Questions that were answered more than once."""
        for path in sorted(folder.glob("answers-*.jsonl")):
            for answer in read_answers(path):
                self._take(answer)
        self._stream = None
        if writer is not None:
            path = folder / f"answers-{writer:05d}.jsonl"
            end = _whole_size(path)
            self._stream = open(path, "ab")
            self._stream.truncate(end)

    def add(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns."""
        assert self._stream is not None
        if (known := self.answers.get(answer.id)) is not None and known.error is None:
            raise AssertionError(f"{answer.id} was asked twice")
        self._stream.write(_line(answer))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._take(answer)

    def close(self) -> None:
        """Close this process's file."""
        if self._stream is not None:
            self._stream.close()

    def _take(self, answer: Answer) -> None:
        known = self.answers.get(answer.id)
        if known is None or _weight(known) < _ANSWER and _weight(answer) >= _weight(known):
            self.answers[answer.id] = answer
        elif _weight(answer) == _ANSWER:
            self.duplicates.append(answer.id)


def read_answers(path: Path) -> Iterator[Answer]:
    """Yield the answers of a file, up to a last line that is torn.

    Raises:
        DataError: another line is damaged; names file and line.
    """
    without = 0
    for number, line in lines(path, DataError):
        if not line.endswith(b"\n"):
            break
        if not line.strip():
            continue
        try:
            answer, checked = _parsed(line, f"{printable(path)}:{number}")
        except DataError as problem:
            raise DataError(f"{problem}. Remove the line, and its question is asked again") from problem
        without += not checked
        yield answer
    if without:
        _log.warning("%s: %d lines without a checksum, of an older version: damage would go unnoticed", path, without)


def _parsed(line: bytes, where: str) -> tuple[Answer, bool]:
    """Return an answer, and whether it had a checksum."""
    content = parse_json(line, where, DataError, unique=True)
    if not isinstance(content, dict):
        raise DataError(f"{where}: not an answer: found {kind_of(content)}, expected an object")
    answer = typed(Answer, unseal(content, where, DataError), where, DataError)
    if not (answer.answer is None) == (answer.error is not None) == (answer.stopped in _WEIGHTS):
        raise DataError(
            f"{where}: not an answer: found answer {kind_of(answer.answer)}, error {kind_of(answer.error)}, stopped "
            f"{answer.stopped!r}; expected text, or null with an error and stopped {' or '.join(_WEIGHTS)}"
        )
    return answer, CHECK in content


def _line(answer: Answer) -> bytes:
    content = seal(asdict(answer))
    try:
        return json_line(content).encode()
    except UnicodeEncodeError:  # half a pair of code units, out of a question: written as JSON has it
        return json.dumps(content).encode() + b"\n"


def _weight(answer: Answer) -> int:
    """What counts before what, of two lines about one question."""
    return _WEIGHTS.get(answer.stopped, _ANSWER)


def _whole_size(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    if not path.exists():
        return 0
    return sum(len(line) for _, line in lines(path, DataError) if line.endswith(b"\n"))
