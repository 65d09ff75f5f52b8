"""Which option a processed answer names: MileBench's extraction as V2PE's variant has it.

Source: MileBench's evaluator. Options are lettered A to Z, then AA, AB, ..., BA, ... Of the first that applies:

1. one of the texts `letter option` stands in the prediction; the leftmost counts, its first character is the letter;
2. an option's text stands in the prediction, both without spaces; the leftmost counts, unless it has a character that
   means something in a regular expression (`$5`, `3.5`): then the next step is tried;
3. the prediction is one or two characters that are an option's letters;
4. all characters of the prediction that are options' letters, in a row.

Defects: an empty prediction counts as option C; options such as `$5` are not found by their text; the fourth step joins
letters out of ordinary words ("the answer is b" gives AB); an option beyond Z is cut to its first letter by the first
step. There is no corrected form of this file: the corrected scorer reads letters by `stated_option`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from megatron_v2pe.evaluate.scorers.answer_words import processed

_SPECIAL = frozenset("\\.^$*+?{}[]|()")
EMPTY = "C"
"""What an empty prediction counts as."""


def option_letters(count: int) -> list[str]:
    """Return the letters of so many options."""
    return [_letter(number) for number in range(count)]


def _letter(number: int) -> str:
    first, last = divmod(number, 26)
    if first == 0:
        return chr(ord("A") + last)
    return "A" + chr(ord("A") + last) if first == 1 else "B" + chr(ord("A") + number - 52)


def extract(prediction: str, options: Mapping[str, str]) -> str:
    """Return the letter, or letters, a processed prediction names.

    Args:
        prediction: processed.
        options: letter -> processed text.
    """
    if prediction == "":
        return EMPTY
    lettered = _leftmost([processed(f"{letter} {option}") for letter, option in options.items()], prediction)
    if lettered is not None:
        return lettered[0].upper()
    texts = {letter: processed(option).replace(" ", "") for letter, option in options.items()}
    text = _leftmost(list(texts.values()), prediction.replace(" ", ""))
    for letter, option in texts.items():
        if text is not None and text.strip() == _escaped(option):
            return letter
    if len(prediction) in (1, 2) and prediction.upper() in options:
        return prediction.upper()
    return "".join(character.upper() for character in prediction if character.upper() in options)


def _leftmost(parts: list[str], text: str) -> str | None:
    """Return the part that stands farthest left in a text, the first in the list of those at one place."""
    found = re.search("|".join(re.escape(part) for part in parts), text)
    return found[0] if found else None


def _escaped(option: str) -> str:
    """Return an option as the reference compares it with what it found: escaped for a regular expression."""
    return "".join("\\" + character if character in _SPECIAL else character for character in option)
