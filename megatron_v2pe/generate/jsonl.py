"""Questions from a JSONL file, answers into another that is added to, line by line, and can be resumed.

A question is `{"id": ..., "prompt": TEXT, "image": PATH or [PATHS]}`, or `{"id": ..., "conversations": [...]}` with
turns `{"from": "human" | "gpt", "value": TEXT}` of which the last is a question. Without an `id` the line's number,
from 1, is taken. An answer is `{"id", "answer", "finish_reason", "num_tokens"}`. Ids answered before are not asked
again; a line that a killed run left half-written is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.data.pictures import TilingOptions
from megatron_v2pe.errors import DataError
from megatron_v2pe.generate.generation import Generated, GenerationOptions
from megatron_v2pe.generate.pretrained import Pretrained, Question


def read_questions(path: Path, image_root: Path | None = None) -> list[Question]:
    """Read all questions; their images are looked up under `image_root`, by default the file's own folder.

    Raises:
        DataError: the file cannot be read, a line is no question, or two have the same id; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    root = path.parent if image_root is None else image_root
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(line, f"{path}:{number}", str(number), root)
        if question.name in questions:
            raise DataError(f"{path}:{number}: the id {question.name} was there before")
        questions[question.name] = question
    return list(questions.values())


def answered(path: Path) -> set[str]:
    """Return the ids an output file has answers for; cut off a last line that is not whole.

    Raises:
        DataError: the file holds something else.
    """
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
    ids: set[str] = set()
    for number, line in enumerate(content[:whole].decode("utf-8", "replace").splitlines(), start=1):
        try:
            ids.add(str(json.loads(line)["id"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not an answer of an earlier run; give another --output") from None
    return ids


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
    return json.dumps(row, ensure_ascii=False) + "\n"


def _question(line: str, place: str, number: str, root: Path) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: malformed JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object with a prompt")
    images = row.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{place}: image must be a path or a list of paths")
    return Question(_turns(row, place), [str(root / image) for image in images], str(row.get("id", number)))


def _turns(row: dict[str, Any], place: str) -> list[tuple[str, str]]:
    if isinstance(prompt := row.get("prompt"), str):
        turns = [("human", prompt)]
    elif isinstance(talk := row.get("conversations"), list) and talk:
        try:
            turns = [(str(turn["from"]), str(turn["value"])) for turn in talk]
        except (KeyError, TypeError):
            raise DataError(f"{place}: each turn of conversations needs from and value") from None
    else:
        raise DataError(f"{place}: neither prompt nor conversations")
    if not turns[-1][1].strip():
        raise DataError(f"{place}: the prompt is empty")
    return turns
