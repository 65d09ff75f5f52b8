"""A line of a user's own questions as a question: which fields are read, how they may be spelt, what is refused.

`own_questions` describes the form. A field that looks like media and is not read is an error (`foreign.media_fields`):
without it a question would be asked without its picture, and scored 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.data.conversation import BEGUN
from megatron_v2pe.data.tokenize import REMEDY, with_images
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import IMAGE, ImageRef, Question
from megatron_v2pe.evaluate.families.own.options import FIELDS as OPTIONS
from megatron_v2pe.evaluate.families.own.options import options_of, right_options, with_options
from megatron_v2pe.evaluate.questions.files import ID, Fields, Row, optional
from megatron_v2pe.foreign.media_fields import Media, media_of
from megatron_v2pe.foreign.printable import printable

MOST_NEW_TOKENS = 1_000_000
EXAMPLE = '{"question": "<image>\\nWhich digit is this?", "image": "digit.png", "answer": "7"}'
"""A line as it is to be."""
READ = (
    *("question", "prompt", "context", "answer", "answers"),
    *("id", "question_id", "max_new_tokens", "answer_begins"),
)
"""Fields that are read beside those of images."""
_TYPES: Fields = {
    **{"question": str, "prompt": str, "context": str, "id": ID, "question_id": ID},
    **{"max_new_tokens": int, "answer_begins": str},
}
_NEEDLE_META = ("placed_depth", "context_length")
_NEEDLE_MARKS = (*_NEEDLE_META, "choices", "choices_image_path", "needles")
"""One of these fields is enough to know MM-NIAH's form: its choices would not be shown otherwise."""
_PLACES = ("", "..", "../images", "images")
"""Folders below which the images of MM-NIAH's form are looked for, relative to the file's: of `mm_niah/TASK.jsonl` of
our builder, of MM-NIAH's `annotations/TASK.jsonl`."""


def is_needle(row: Row) -> bool:
    """Whether a line is of MM-NIAH's form: a context, and beside it what it knows of the needle or of choices."""
    meta = row.get("meta")
    return "context" in row and isinstance(meta, dict) and any(name in meta for name in _NEEDLE_MARKS)


def refuse_training(where: str, row: Row) -> None:
    """Refuse a line of another kind of file by what it is.

    Raises:
        DataError: it is a line of a training annotation.
    """
    talk = next((name for name in ("conversations", "messages", "conversation") if name in row), None)
    if talk is not None and "question" not in row and "prompt" not in row:
        raise DataError(
            f"{where}: a line of a training annotation ({talk!r}), and no question with its answer. A line of own "
            f"questions is {EXAMPLE}: the last question of the conversation, and what is to be answered"
        )


def own_question(where: str, row: Row, number: int, folders: Sequence[Path]) -> tuple[Question, tuple[str, ...]]:
    """Return a line as a question, and the names of its fields that nobody reads.

    Args:
        where: `file:line`, for messages.
        row: the object of the line.
        number: of the line, its name where it has none.
        folders: images are relative to the first of them that has them: that of the file, and the root of the data.

    Raises:
        DataError: a field is missing or of another type, or something that looks like media is not read.
    """
    refuse_training(where, row)
    optional(where, row, _TYPES)
    media = media_of(row, READ, DataError, f"{where}: ", video=False)
    text = _one_of(where, row, ("question", "prompt"))
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: question is {printable(text)[:60]!r}, expected text")
    answers = _answers(where, _one_of(where, row, ("answer", "answers")))
    listed = answers if isinstance(answers, list) else [answers]
    options = options_of(where, row, listed)
    text = with_options(text, options)
    if row.get("context"):
        text = f"{row['context']}\n{text}"
    _check_numbers(where, row)
    begun = ((BEGUN, row["answer_begins"]),) if row.get("answer_begins") is not None else ()
    turns = (*with_images([("human", text)], len(media.images)), *begun)
    check_places(where, turns, media)
    kept = {name: value for name, value in row.items() if name not in (*READ, *OPTIONS)}
    shown = {"answers": right_options(where, listed, options), "options": options} if options else {"answers": answers}
    question = Question(
        id=str(_name(row, number)),
        turns=tuple(turns),
        images=tuple(ImageRef(_found(_file(where, image), folders)) for image in media.images),
        facts={**kept, **shown},
        max_new_tokens=row.get("max_new_tokens"),
    )
    return question, tuple(
        name for name in media.unknown if name not in (*OPTIONS, *options) and row[name] not in (None, "", [], {})
    )


def needle_row(where: str, row: Row, number: int, folder: Path) -> Row:
    """Return a line in MM-NIAH's form with its images as paths from here.

    Raises:
        DataError: something that looks like media is not read.
    """
    optional(where, row, _TYPES)
    media = media_of(row, (*READ, "meta"), DataError, f"{where}: ", video=False)
    _check_numbers(where, row)
    question, answer = _one_of(where, row, ("question", "prompt")), _one_of(where, row, ("answer", "answers"))
    meta = dict(row["meta"])
    if missing := [name for name in _NEEDLE_META if name not in meta]:
        raise DataError(
            f"{where}: meta: no {', '.join(map(repr, missing))}: a line of MM-NIAH's form says where its needle is "
            "placed, from 0 to 1, and how many tokens its context has"
        )
    places = [Path(os.path.normpath(folder / place)) for place in _PLACES]
    choices = meta.get("choices_image_path")
    if isinstance(choices, list) and all(isinstance(path, str) for path in choices):
        meta["choices_image_path"] = [_found(path, places) for path in choices]
    images = [_found(_file(where, path), places) for path in media.images]
    read = {"id": _name(row, number), "question": question, "answer": answer, "images_list": images, "meta": meta}
    return {**row, **read}


def check_places(where: str, turns: tuple[tuple[str, str], ...], media: Media) -> None:
    """Refuse a text whose placeholders and images differ in number; says what to do."""
    places = sum(text.count(IMAGE) for _, text in turns)
    if places != len(media.images):
        count = len(media.images)
        remedy = REMEDY if count else f'name the image\'s file, "image": "digit.png", or leave {IMAGE} out'
        raise DataError(f"{where}: {places} {IMAGE} in the text, but {count} images: {remedy}")


def _file(where: str, path: str) -> str:
    """Return a path as it is; refuses an address."""
    if "://" in path:
        raise DataError(f"{where}: {printable(path)[:80]}: nothing is fetched from an address; give the path of a file")
    return path


def _found(path: str, folders: Sequence[Path]) -> str:
    """Return where an image lies; in the first folder where it is nowhere."""
    return str(next((folder / path for folder in folders if os.path.lexists(folder / path)), folders[0] / path))


def _one_of(where: str, row: Mapping[str, Any], names: tuple[str, str]) -> Any:
    """Return a field that has two names."""
    there = [name for name in names if row.get(name) is not None]
    if len(there) == 2 and row[there[0]] != row[there[1]]:
        raise DataError(f"{where}: {there[0]!r} and {there[1]!r} both stand here and differ; leave one out")
    if not there:
        found = printable(", ".join(map(repr, row)))[:300] or "nothing"
        raise DataError(f"{where}: no {names[0]!r}, only {found}. A line of own questions is {EXAMPLE}")
    return row[there[0]]


def _answers(where: str, value: Any) -> str | list[str]:
    """Return the true answers as texts; numbers as they are written."""
    listed = value if isinstance(value, list) else [value]
    fit = all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in listed)
    texts = [str(one) for one in listed]
    if not fit or not texts or not all(one.strip() for one in texts):
        raise DataError(
            f"{where}: answer is {printable(value)[:60]!r}, expected text, or a list of texts that are right"
        )
    return texts if isinstance(value, list) else texts[0]


def _name(row: Row, number: int) -> str | int:
    for name in ("id", "question_id"):
        if row.get(name) is not None:
            return row[name]
    return number


def _check_numbers(where: str, row: Row) -> None:
    """Refuse values that would stop the run later."""
    most = row.get("max_new_tokens")
    if most is not None and not 1 <= most <= MOST_NEW_TOKENS:
        raise DataError(f"{where}: max_new_tokens is {most}, expected between 1 and {MOST_NEW_TOKENS}")
    begun = row.get("answer_begins")
    if begun is not None and not begun.strip():
        raise DataError(f"{where}: answer_begins is empty; leave it out where the model is to begin by itself")
