"""Answers on disk: appended one by one by every process of a run, read back by the next, whatever its size.

Each process that writes has a file of its own, `answers-NNNNN.jsonl`; a line is written whole and flushed to the disk
before the next question is asked. A line torn by a kill is cut off when the folder is opened again. A question that has
an answer in any of the files is never asked again; where two files answer it (two runs at once), the first counts and
the other is reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, with everything needed to see why."""

    id: str
    answer: str | None
    """None where there is none, see `error`."""
    prompt: str
    """The text the model read; an image stands as its first and last mark with its number of tiles."""
    num_tokens: int
    """Of the prompt."""
    num_tiles: int
    new_tokens: int
    seconds: float
    stopped: str
    """Why generation ended: `stop`, `length`, or `error`."""
    error: str | None = None


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
        self.duplicates: list[str] = []
        for path in sorted(folder.glob("answers-*.jsonl")):
            for answer in read_answers(path):
                if answer.id in self.answers:
                    self.duplicates.append(answer.id)
                else:
                    self.answers[answer.id] = answer
        self._stream = None
        if writer is not None:
            path = folder / f"answers-{writer:05d}.jsonl"
            end = _whole_size(path)
            self._stream = open(path, "ab")
            self._stream.truncate(end)

    def add(self, answer: Answer) -> None:
        """Write an answer; it is on the disk when this returns."""
        assert self._stream is not None
        if answer.id in self.answers:
            raise AssertionError(f"{answer.id} was asked twice")
        self._stream.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.answers[answer.id] = answer

    def close(self) -> None:
        """Close this process's file."""
        if self._stream is not None:
            self._stream.close()


def read_answers(path: Path) -> Iterator[Answer]:
    """Yield the answers of a file, up to a last line that is torn.

    Raises:
        DataError: another line is damaged; names file and line.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                content: Mapping[str, Any] = json.loads(line)
                yield Answer(**content)
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}:{number}: not an answer: {error}") from error


def _whole_size(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    return content.rfind(b"\n") + 1
