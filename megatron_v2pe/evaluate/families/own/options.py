"""The options of an own question: shown beneath it, and given to the scorer; a letter alone says nothing to a model.

Understood: `options` or `choices`, a list of texts or an object of letters and texts (MMMU's list inside a text too),
or fields `A`, `B`, ... of the line, as tables of multiple choice have them, where the answer is one of these letters.
Options stand beneath the question as `A. text` lines with the sentence that asks for a letter, as in the published
benchmarks, unless their texts stand in the question already. The answer is a letter or the text of an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.questions.files import literal_list
from megatron_v2pe.evaluate.questions.wording import LETTER, lettered, option_lines
from megatron_v2pe.foreign.media_fields import refuse_hidden_media
from megatron_v2pe.foreign.printable import printable

FIELDS = ("options", "choices")
"""Fields that hold options; the first that holds any is taken."""
_AROUND = "(). "
"""What may stand around a letter in an answer."""


def options_of(where: str, row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, str]:
    """Return the options of a line by letter; empty where it has none.

    Args:
        where: `file:line`, for messages.
        row: the object of the line.
        answers: its true answers.

    Raises:
        DataError: options are of another form, or are pictures.
    """
    name = next((name for name in FIELDS if row.get(name) not in (None, "", [], {})), None)
    if name is None:
        return _columns(row, answers)
    value = row[name]
    refuse_hidden_media({name: value}, DataError, f"{where}: ")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = literal_list(f"{where}: {name}", value)
    if isinstance(value, Mapping):
        found = {str(key).strip(_AROUND).upper(): text for key, text in value.items() if text is not None}
    else:
        found = lettered(value) if isinstance(value, list) else {}
    texts = value if isinstance(value, list) else [*found.values()]
    if not all(map(_is_text, texts)) or len(found) < 2 or not all(letter in ascii_uppercase for letter in found):
        raise DataError(
            f'{where}: {name} is {printable(row[name])[:80]!r}, expected a list of texts, or {{"A": TEXT, "B": TEXT}}: '
            "at least 2, at most 26; without options leave the field out"
        )
    return {letter: str(text).strip() for letter, text in found.items()}


def with_options(text: str, options: Mapping[str, str]) -> str:
    """Return a question with its options beneath it, unless all their texts stand in it."""
    if not options or all(option in text for option in options.values()):
        return text
    return "\n".join([text, option_lines(options), LETTER])


def right_options(where: str, answers: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """Return true answers as the scorer knows them, the letter of each and its text, if that is no letter of another.

    Raises:
        DataError: an answer is none of the options.
    """
    right: list[str] = []
    for answer in answers:
        plain = answer.strip()
        letter = next((letter for letter, text in options.items() if text.casefold() == plain.casefold()), None)
        letter = plain.strip(_AROUND).upper() if letter is None else letter
        if letter not in options:
            counted = "; an option is named by its letter, not by its number" if plain.isdecimal() else ""
            raise DataError(
                f"{where}: the answer {printable(plain)[:60]!r} is none of the options, {', '.join(options)}, nor the "
                f"text of one{counted}"
            )
        right += [letter] if options[letter].upper() in options else [letter, options[letter]]
    return right


def _columns(row: Mapping[str, Any], answers: Sequence[str]) -> dict[str, str]:
    """Return the fields `A`, `B`, ... of a line whose answer is one of them."""
    found: dict[str, str] = {}
    for letter in ascii_uppercase:
        if not _is_text(row.get(letter)):
            break
        found[letter] = str(row[letter]).strip()
    named = {answer.strip(_AROUND).casefold() for answer in answers} | {answer.strip().casefold() for answer in answers}
    known = {text.casefold() for text in (*found, *found.values())}
    return found if len(found) > 1 and named & known else {}


def _is_text(value: object) -> bool:
    """Whether a value can be an option: text that is not empty, or a number."""
    if isinstance(value, str):
        return value.strip() != ""
    return isinstance(value, int | float) and not isinstance(value, bool)
