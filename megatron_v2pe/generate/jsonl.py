"""Questions from a JSONL file, answers into another that is added to, line by line, and can be resumed.

A question is `{"id": ..., "prompt": TEXT, "image": PATH or [PATHS]}`, or `{"id": ..., "conversations": [...]}` with
turns `{"from": "human" | "gpt", "value": TEXT}` of which the last is a question. Without an `id` the line's number,
from 1, is taken. An answer is `{"id", "answer", "finish_reason", "num_tokens", "check"}`, `check` a checksum of the
others (`foreign.seal`). Ids answered before are not asked again; a line that a killed run left half-written is cut off,
any other damaged line is named and refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from megatron_v2pe.data.pictures import TilingOptions
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, typed
from megatron_v2pe.foreign.seal import seal, unseal
from megatron_v2pe.foreign.text import json_lines, kind_of, lines, parse_json
from megatron_v2pe.generate.generation import Generated, GenerationOptions
from megatron_v2pe.generate.pretrained import Pretrained, Question


@dataclass(frozen=True)
class _Answer:
    """A line of the output."""

    id: str
    answer: str
    finish_reason: str
    num_tokens: Annotated[int, Range(0)]


def read_questions(path: Path, image_root: Path | None = None) -> list[Question]:
    """Read all questions; their images are looked up under `image_root`, by default the file's own folder.

    Raises:
        DataError: the file cannot be read, a line is no question, or two have the same id; names the line.
    """
    root = path.parent if image_root is None else image_root
    questions: dict[str, Question] = {}
    for number, row in json_lines(path, DataError):
        place = f"{printable(path)}:{number}"
        question = _question(row, place, number, root)
        if question.name in questions:
            raise DataError(f"{place}: the id {printable(question.name)} was there before")
        questions[question.name] = question
    return list(questions.values())


def answered(path: Path) -> set[str]:
    """Return the ids an output file has answers for; cut off a last line that is not whole.

    Raises:
        DataError: the file holds something else.
    """
    if not os.path.lexists(path):
        return set()
    ids: set[str] = set()
    whole = size = 0
    for number, line in lines(path, DataError):
        size += len(line)
        if not line.endswith(b"\n"):
            break
        whole = size
        if line.strip():
            ids.add(_read_answer(line, f"{printable(path)}:{number}").id)
    if whole < size:
        os.truncate(path, whole)
    return ids


def _read_answer(line: bytes, place: str) -> _Answer:
    try:
        content = parse_json(line, place, DataError, unique=True)
        if not isinstance(content, dict):
            raise DataError(f"{place}: found {kind_of(content)}, expected an object")
        return typed(_Answer, unseal(content, place, DataError), place, DataError)
    except DataError as problem:
        raise DataError(
            f"{problem}. Not an answer of an earlier run, or damaged: remove the line, and its question is asked "
            "again, or give another --output"
        ) from problem


def answer_file(
    pretrained: Pretrained,
    questions: Sequence[Question],
    output: Path,
    tiling: TilingOptions,
    options: GenerationOptions,
    batch_size: int,
    writes: bool,
) -> Iterator[int]:
    """Answer questions batch by batch; every rank calls this.

    Args:
        pretrained: the model.
        questions: those not answered yet.
        output: where answers are added.
        tiling: how images become tiles.
        options: how answers are made.
        batch_size: questions answered together.
        writes: whether this rank writes.

    Yields:
        How many answers each batch has added.

    Raises:
        DataError: a question cannot be asked; nothing has been written then, unless an image turns out to be damaged.
    """
    pretrained.encode(questions, tiling, options.max_new_tokens)
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        answers = pretrained.ask(batch, tiling, options)
        if writes:
            with output.open("a", encoding="utf-8") as stream:
                stream.writelines(_line(one, answer) for one, answer in zip(batch, answers, strict=True))
        yield len(batch)


def _line(question: Question, answer: Generated) -> str:
    row = {
        "id": question.name,
        "answer": answer.text.strip(),
        "finish_reason": answer.finish_reason,
        "num_tokens": len(answer.token_ids),
    }
    return json.dumps(seal(row), ensure_ascii=False) + "\n"


def _question(row: Any, place: str, number: int, root: Path) -> Question:
    fields = Fields(row, place, DataError)
    images = fields.get("image", str | list[str], [])
    images = ([images] if images else []) if isinstance(images, str) else images
    name = str(fields.get("id", str | int, number))
    turns = _turns(fields, place)
    for text in (name, *images, *(text for _, text in turns)):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"{place}: {printable(text)[:60]!r} holds half a character")
    return Question(turns, [str(root / image) for image in images], name)


def _turns(fields: Fields, place: str) -> list[tuple[str, str]]:
    if (prompt := fields.text("prompt", None)) is not None:
        turns = [("human", prompt)]
    elif talk := fields.get("conversations", list[dict[str, Any]], []):
        found = [Fields(turn, f"{place}: conversations[{number}]", DataError) for number, turn in enumerate(talk)]
        turns = [(turn.text("from"), turn.text("value")) for turn in found]
    else:
        raise DataError(f"{place}: neither prompt nor conversations")
    if not turns[-1][1].strip():
        raise DataError(f"{place}: the prompt is empty")
    return turns
