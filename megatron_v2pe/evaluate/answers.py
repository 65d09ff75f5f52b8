"""Answers on disk: appended one by one by every process of a run, read back by the next, whatever its size.

Each process that writes has a file of its own, `answers-NNNNN.jsonl`; a line is written whole and flushed to the disk
before the next question is asked, and never changed afterwards. A line torn by a kill is cut off when its process
writes again. Every line has a checksum of its own (`foreign.seal`); lines of earlier versions have none and are
read all the same. A line that is damaged is named and refused: without it, its question is asked again.

People edit answers: to try a scorer, or to put another model's texts in. A second checksum, `check_question`, is of all
but `answer`, `stopped` and `error`; a line whose question is whole and whose answer is another text was edited, and not
damaged: it counts as it stands, and everything computed of it is marked. What one flipped bit explains is damage, as is
any change of the question. So no change goes unnoticed, and none that is meant is refused.

A question that ended in an error may be asked again: of its lines an answer counts before an error, and of errors the
last. Where two answers are there (two runs at once), the first counts and the question is reported.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import CHECK, checksum, one_bit_away, seal, unseal
from megatron_v2pe.foreign.text import json_line, kind_of, lines, parse_json

KILLED: Literal["killed"] = "killed"
"""`stopped` of a question that has ended its run too often to be asked once more, see `crash_notes`."""
_QUESTION = "check_question"
_EDITABLE = frozenset({"answer", "stopped", "error"})
_LONGEST_EDIT = 10_000
"""Characters of an edited answer: longer ones are not tried bit by bit, and refused."""
_MOST_TRIED = 100
"""Edited lines of a file that are tried bit by bit; where there are more, a program has edited them."""
_ANSWER = 2
_WEIGHTS = {"error": 0, KILLED: 1}
Stopped = Literal["stop", "length", "error", "killed"]
"""Why generation ended."""
_Count = Annotated[int, Range(0)]
_IMAGES = re.compile(r"<image(?: of \d+ tiles)?>")
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
    """Tokens of the prompt."""
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
        self.edited: list[str] = []
        """Questions whose answer was edited after it was written."""
        for path in sorted(folder.glob("answers-*.jsonl")):
            for answer, edited in _read(path):
                self._take(answer)
                self.edited += [answer.id] * edited
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


def turns_text(turns: Sequence[tuple[str, str]]) -> str:
    """Return (role, text) turns as one text, a line for each turn."""
    return "\n".join(f"{role}: {words}" for role, words in turns)


def without_images(prompt: str) -> str:
    """Return the text of turns, from `turns_text` or from an answer's `prompt`, without its images.

    Two prompts ask the same question where these texts are equal, however their images were tiled.
    """
    return _IMAGES.sub("", prompt)


def _read(path: Path) -> Iterator[tuple[Answer, bool]]:
    """Yield the answers of a file, and whether each was edited, up to a last line that is torn.

    Raises:
        DataError: another line is damaged; names file and line.
    """
    without = edits = 0
    for number, line in lines(path, DataError):
        if not line.endswith(b"\n"):
            break
        if not line.strip():
            continue
        try:
            answer, checked, edited = _parsed(line, f"{printable(path)}:{number}", edits < _MOST_TRIED)
        except DataError as problem:
            raise DataError(
                f"{problem}. Remove the line, and its question is asked again; if you changed it yourself, remove its "
                f"field {CHECK}"
            ) from problem
        without += not checked
        edits += edited
        yield answer, edited
    if edits:
        _log.warning(
            "%s: %d answers were edited after they were written: they count as they stand now, and what is computed of "
            "them is marked",
            path,
            edits,
        )
    if without:
        _log.warning("%s: %d lines without a checksum, of an older version: damage would go unnoticed", path, without)


def _parsed(line: bytes, where: str, try_bits: bool) -> tuple[Answer, bool, bool]:
    """Return an answer, whether it had a checksum, and whether it was edited.

    Args:
        line: of a file.
        where: file and line.
        try_bits: whether a flipped bit is looked for in an answer that was changed.
    """
    content = parse_json(line, where, DataError, unique=True)
    if not isinstance(content, dict):
        raise DataError(f"{where}: not an answer: found {kind_of(content)}, expected an object")
    try:
        rest = unseal(content, where, DataError)
        edited = False
    except DataError:
        if not _is_edited(content, try_bits):
            raise
        rest = {name: value for name, value in content.items() if name != CHECK}
        edited = True
    if not isinstance(stated := rest.pop(_QUESTION, ""), str):
        raise DataError(f"{where}: not an answer: found {_QUESTION} {kind_of(stated)}, expected text")
    answer = typed(Answer, rest, where, DataError)
    if not (answer.answer is None) == (answer.error is not None) == (answer.stopped in _WEIGHTS):
        raise DataError(
            f"{where}: not an answer: found answer {kind_of(answer.answer)}, error {kind_of(answer.error)}, stopped "
            f"{answer.stopped!r}; expected text, or null with an error and stopped {' or '.join(_WEIGHTS)}"
        )
    return answer, CHECK in content, edited


def _question_check(content: Mapping[str, Any]) -> str:
    """Return the checksum of a line without its answer."""
    return checksum({name: value for name, value in content.items() if name not in (*_EDITABLE, _QUESTION, CHECK)})


def _is_edited(content: Mapping[str, Any], try_bits: bool) -> bool:
    """Return whether a line whose checksum does not match is whole but for its answer, which is another text."""
    text = content.get("answer")
    if not isinstance(text, str) or len(text) > _LONGEST_EDIT or not isinstance(content[CHECK], str):
        return False
    if content.get(_QUESTION) != _question_check(content):
        return False
    return not (try_bits and one_bit_away(content, "answer"))


def _line(answer: Answer) -> bytes:
    content = asdict(answer)
    content = seal({**content, _QUESTION: _question_check(content)})
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
