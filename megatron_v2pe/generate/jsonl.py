"""Questions from a JSONL file, answers into another that is added to, line by line, and can be resumed.

A question is `{"id": ..., "prompt": TEXT, "image": PATH or [PATHS]}`, or `{"id": ..., "conversations": [...]}` with
turns `{"from": "human" | "gpt", "value": TEXT}` of which the last is a question. `prompt` may be called `question`,
`query` or, where none of these is there, `text`; `context` stands before it, a line break between them. Turns and
images may be spelt as in training data (`data.turns`, `foreign.media_fields`), `system` may hold a system prompt; a
further field that looks like media is refused, others are named once. Without an `id`, or `question_id`, the line's
number, from 1, is taken. `adapter` names which of the loaded adapters answers. An answer is
`{"id", "answer", "finish_reason", "num_tokens", "asked", "check"}`, `asked` a checksum of the question, `check` one of
the other fields (`foreign.seal`). Ids answered before are not asked again, unless the question is another one now,
which is refused; a line that a killed run left half-written is cut off, any other damaged line is named and refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.data.image_plan import TilingOptions
from megatron_v2pe.data.turns import LISTS, TURN_FIELDS, turns_of
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.media_fields import media_of, named
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, typed
from megatron_v2pe.foreign.seal import checksum, seal, unseal
from megatron_v2pe.foreign.text import is_unicode, json_line, json_lines, kind_of, lines, parse_json
from megatron_v2pe.generate.generation import Generated, GenerationOptions
from megatron_v2pe.generate.pretrained import ChatQuestion, Pretrained

_READ = (*TURN_FIELDS, "prompt", "id", "adapter")
_ASKED = ("prompt", "question", "query", "text")
"""Fields that may hold the question; the last is read where none of the others is there."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Answer:
    """A line of the output."""

    id: str
    answer: str
    finish_reason: str
    num_tokens: Annotated[int, Range(0)]
    asked: str | None = None
    """Checksum of the question; older versions wrote none."""


def read_questions(path: Path, image_root: Path | None = None) -> list[ChatQuestion]:
    """Read all questions; their images are looked up under `image_root`, by default the file's own folder.

    Raises:
        DataError: the file cannot be read, a line is no question, or two have the same id; names the line.
    """
    root = path.parent if image_root is None else image_root
    questions: dict[str, ChatQuestion] = {}
    unread = Counter[str]()
    for number, row in json_lines(path, DataError):
        place = f"{printable(path)}:{number}"
        question = _question(row, place, number, root, unread)
        if question.name in questions:
            raise DataError(f"{place}: the id {printable(question.name)} was there before")
        questions[question.name] = question
    if unread:
        _log.warning("%s: fields that are not read: %s", printable(path), named(unread))
    return list(questions.values())


def unanswered(questions: Sequence[ChatQuestion], path: Path) -> list[ChatQuestion]:
    """Return the questions an output file has no answer for; cut off a last line that is not whole.

    Raises:
        DataError: the file holds something else, or answers another question of the same id: the questions were edited,
            or lines without an `id` moved.
    """
    there = _answers(path)
    for question in questions:
        found = there.get(question.name)
        if found is not None and found.asked not in (None, _asked(question)):
            raise DataError(
                f"{printable(path)}: what it answers as {printable(question.name)[:60]!r} is not what is asked now: "
                "the question was edited, or has another line's number for want of an id; remove the answer's line, "
                "and it is asked again, or give another --output"
            )
    return [question for question in questions if question.name not in there]


def answered(path: Path) -> set[str]:
    """Return the ids an output file has answers for; it does and raises what `unanswered` does and raises."""
    return set(_answers(path))


def _answers(path: Path) -> dict[str, _Answer]:
    if not os.path.lexists(path):
        return {}
    answers: dict[str, _Answer] = {}
    whole = size = 0
    for number, line in lines(path, DataError):
        size += len(line)
        if not line.endswith(b"\n"):
            break
        whole = size
        if line.strip():
            answer = _read_answer(line, f"{printable(path)}:{number}")
            answers[answer.id] = answer
    if whole < size:
        os.truncate(path, whole)
    return answers


def _asked(question: ChatQuestion) -> str:
    """Return a checksum of what is asked: its turns, and the names of its images without their folders."""
    asked = {"turns": [list(turn) for turn in question.turns], "images": [*map(os.path.basename, question.images)]}
    return checksum(asked if question.adapter is None else {**asked, "adapter": question.adapter})


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
    questions: Sequence[ChatQuestion],
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
    for batch in _batches(questions, batch_size):
        answers = pretrained.ask(batch, tiling, options)
        if writes:
            with output.open("a", encoding="utf-8") as stream:
                stream.writelines(_line(one, answer) for one, answer in zip(batch, answers, strict=True))
        yield len(batch)


def _batches(questions: Sequence[ChatQuestion], size: int) -> Iterator[Sequence[ChatQuestion]]:
    """Yield questions in their order, at most `size` together and only such as the same adapter answers."""
    for _, same in groupby(questions, key=lambda one: one.adapter):
        among = list(same)
        yield from (among[start : start + size] for start in range(0, len(among), size))


def _line(question: ChatQuestion, answer: Generated) -> str:
    row = {
        "id": question.name,
        "answer": answer.text.strip(),
        "finish_reason": answer.finish_reason,
        "num_tokens": len(answer.token_ids),
        "asked": _asked(question),
    }
    return json_line(seal(row))


def _question(row: Any, place: str, number: int, root: Path, unread: Counter[str]) -> ChatQuestion:
    fields = Fields(row, place, DataError)
    fields.get("image", str | list[str], None)
    prompt = _prompt(fields, place)
    read = _READ if prompt is None else (*_READ, "question", "query", "context", prompt[0])
    media = media_of(fields.content, read, DataError, f"{place}: ", video=False)
    unread.update(media.unknown)
    named_by = next((field for field in ("id", "question_id") if fields.content.get(field) is not None), "id")
    name = str(fields.get(named_by, str | int, number))
    turns = _turns(fields, place, None if prompt is None else prompt[1])
    for text in (name, *(text for _, text in turns)):
        if not is_unicode(text):
            raise DataError(f"{place}: {printable(text)[:60]!r} holds half a character")
    for image in media.images:
        if "://" in image:
            raise DataError(
                f"{place}: {printable(image)[:80]}: nothing is fetched from an address; give the path of a file"
            )
    return ChatQuestion(turns, [str(root / image) for image in media.images], name, fields.text("adapter", None))


def _prompt(fields: Fields, place: str) -> tuple[str, str] | None:
    """Return what a line asks and the name it has there; None where it holds a conversation or nothing."""
    row = fields.content
    names = [name for name in _ASKED if row.get(name) is not None]
    if not names or (names == ["text"] and any(row.get(name) for name in LISTS)):
        return None
    found = [(name, fields.text(name)) for name in names if name != "text" or names == ["text"]]
    if any(text != found[0][1] for _, text in found):
        raise DataError(f"{place}: {found[0][0]} and {found[1][0]} both stand here and differ; leave one out")
    if isinstance(meta := row.get("meta"), dict) and (meta.get("choices") or meta.get("choices_image_path")):
        raise DataError(
            f"{place}: a question with choices of MM-NIAH's form, which are not shown here: tools/evaluate.py "
            "--benchmarks FILE asks and scores them"
        )
    context = fields.text("context", None)
    return found[0][0], f"{context}\n{found[0][1]}" if context and found[0][1].strip() else found[0][1]


def _turns(fields: Fields, place: str, prompt: str | None) -> list[tuple[str, str]]:
    row = dict(fields.content)
    talk = next((name for name in LISTS if row.get(name) not in (None, [])), None)
    if prompt is not None and talk is not None:
        raise DataError(f"{place}: prompt and {talk}: a question has one of them; leave the other out")
    if prompt is not None and not is_unicode(prompt):
        raise DataError(f"{place}: {printable(prompt)[:60]!r} holds half a character")
    if prompt is not None:
        row["conversations"] = [{"from": "human", "value": prompt}]
    elif talk is not None:
        for number, turn in enumerate(fields.get(talk, list[dict[str, Any]])):
            if not turn.keys() & {"role", "content"}:
                found = Fields(turn, f"{place}: {talk}[{number}]", DataError)
                for field in ("from", "value"):
                    found.text(field)
    turns = turns_of(row, DataError, f"{place}: ")
    if turns is None:
        others = [repr(name) for name in ("instruction", "input", "Question", "Prompt") if name in row]
        hint = f"; {', '.join(others)} not read: give the question as 'prompt'" if others else ""
        raise DataError(f"{place}: neither prompt nor conversations{hint}")
    if not turns[-1][1].strip():
        raise DataError(f"{place}: the prompt is empty")
    if turns[-1][0] != "human":
        raise DataError(f"{place}: the last turn is an answer; leave it out, and it is asked for")
    return list(turns)
