"""Whether two lists of values mean the same: the official WikiTableQuestions match.

Source: Pasupat and Liang, 2015, as DUE's evaluator has it. A text is a number if it reads as one, else a date if it is
year-month-day with `xx` for what is not known (a year alone is a number), else a text. Two values match if their
normalised texts are equal, or both are numbers within 1e-6, or both the same date. Lists match if they have as many
distinct values and every true value has a match.

Normalised: accents dropped, quotes and dashes made plain; citations, footnote signs, a last bracket and outer quotes
removed as often as they occur; a last dot removed; single spaces, lower case.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

_QUOTES = re.compile("[‘’´`]")
_DOUBLE_QUOTES = re.compile("[“”]")
_DASHES = re.compile("[‐‑‒–—−]")
_NOTES = re.compile(r"((?<!^)\[[^\]]*\]|\[\d+\]|[•♦†‡*#+])*$")
_BRACKET = re.compile(r"(?<!^)( \([^)]*\))*$")
_OUTER_QUOTES = re.compile(r'^"([^"]*)"$')
_NEAR = 1e-6
Date = tuple[int, int, int]
"""Year, month, day; -1 for what is not known."""


@dataclass(frozen=True)
class Value:
    """One value; equal to another of the same meaning, or of the same text if it is neither number nor date."""

    meaning: float | Date | str
    text: str = field(compare=False)
    """Normalised."""

    def matches(self, other: Value) -> bool:
        """Whether two values mean the same."""
        if self.text == other.text:
            return True
        if isinstance(self.meaning, (int, float)) and isinstance(other.meaning, (int, float)):
            return abs(self.meaning - other.meaning) < _NEAR
        return isinstance(self.meaning, tuple) and self.meaning == other.meaning


def same_denotation(predicted: Sequence[str], true: Sequence[str]) -> bool:
    """Whether two lists of values match."""
    said, meant = set(map(read, predicted)), set(map(read, true))
    return len(said) == len(meant) and all(any(value.matches(other) for other in said) for value in meant)


def read(text: str) -> Value:
    """Return the value a text is."""
    plain = normalise(text)
    number = _number(text)
    if number is None:
        date = _date(text)
        if date is None:
            return Value(plain, plain)
        if date[1] != -1 or date[2] != -1:
            return Value(date, plain)
        number = date[0]
    return Value(int(number) if abs(number - round(number)) < _NEAR else float(number), plain)


def normalise(text: str) -> str:
    """Return a text as texts are compared."""
    text = "".join(
        character for character in unicodedata.normalize("NFKD", text) if unicodedata.category(character) != "Mn"
    )
    text = _DASHES.sub("-", _DOUBLE_QUOTES.sub('"', _QUOTES.sub("'", text)))
    before = None
    while text != before:
        before = text
        text = _OUTER_QUOTES.sub(r"\1", _BRACKET.sub("", _NOTES.sub("", text.strip()).strip()).strip())
    return re.sub(r"\s+", " ", text.removesuffix(".")).lower().strip()


def _number(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _date(text: str) -> Date | None:
    parts = text.lower().split("-")
    if len(parts) != 3:
        return None
    try:
        year = -1 if parts[0] in ("xx", "xxxx") else int(parts[0])
        month, day = (-1 if part == "xx" else int(part) for part in parts[1:])
    except ValueError:
        return None
    known = year != -1 or month != -1 or day != -1
    valid = (month == -1 or 1 <= month <= 12) and (day == -1 or 1 <= day <= 31)
    return (year, month, day) if known and valid else None
