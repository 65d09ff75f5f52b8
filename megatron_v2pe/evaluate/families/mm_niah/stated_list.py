"""Which list an answer states: MM-NIAH's counts, found whatever other brackets stand beside it.

Of a cleaned answer every pair of brackets is tried, as JSON and as Python writes it, quotes of either kind, words
without quotes too; a dictionary is its `answer`, else its values, joined. Where the answer corrects itself, the last
part that holds a list counts. What stands behind an answer's cue counts first, the first list there; else a list at the
beginning; else the last list of several values; else the last list: single numbers in brackets are mostly citations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, json_value
from megatron_v2pe.evaluate.scorers.stated_answer import after_cues, split_at_corrections

_CLOSES = {"[": "]", "{": "}"}
_WORDS = re.compile(r"\[\s*[\w.+-]+(?:\s*,\s*[\w.+-]+)+\s*\]")
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "、": ","})
_CUE = re.compile(r"\b(?:counts?|results?|lists?|numbers?|output)\s*(?:is|are|would\s+be|[:=])\s*:?\s*(?=[\[{])", re.I)
_NAMES = frozenset(("answer", "final_answer", "counts", "count", "list", "result", "output"))
_MOST = 500
"""Brackets that are tried."""


def stated_list(text: str) -> list[Any] | None:
    """Return the list an answer states; None if it holds none."""
    for part in reversed(split_at_corrections(clean_answer(text).translate(_QUOTES), no_corrects=True)):
        if (values := _of_part(part)) is not None:
            return values
    return None


def _of_part(said: str) -> list[Any] | None:
    found = list(_lists(said))
    if not found:
        return None
    cues = [place for place, _ in after_cues(said)] + [match.end() for match in _CUE.finditer(said)]
    behind = [values for cue in sorted(cues)[-1:] for start, values in found if start >= cue]
    several = [values for _, values in found if len(values) > 1]
    if not cues and said.lstrip(" \t\n\"'(*").startswith("[") and len(found[0][1]) > 1:
        return found[0][1]
    first = next((values for values in behind if len(values) > 1 or not several), None)
    return first if first is not None else (several or [values for _, values in found])[-1]


def joined(value: Any) -> list[Any] | None:
    """Return the values of a list, or of a dictionary's values, lists among them joined; None if it is neither."""
    if isinstance(value, Mapping):
        own = [part for name, part in value.items() if str(name).lower() in _NAMES and isinstance(part, list)]
        value = own[0] if len(own) == 1 else list(value.values())
    if not isinstance(value, (list, tuple)):
        return None
    return [part for element in value for part in (element if isinstance(element, (list, tuple)) else [element])]


def _lists(text: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield outermost lists and where they begin, in order."""
    end = 0
    for number, match in enumerate(re.finditer(r"[\[{]", text)):
        start = match.start()
        if number >= _MOST:
            return
        if start < end:
            continue
        stop = _matching(text, start)
        if stop is None:
            continue
        values = joined(_value(text[start:stop]))
        if values is not None:
            end = stop
            yield start, values


def _value(text: str) -> Any:
    value = json_value(text)
    if value is None and _WORDS.fullmatch(text):
        value = [word.strip() for word in text[1:-1].split(",")]
    return value


def _matching(text: str, start: int) -> int | None:
    """Return the place behind the bracket that closes one; brackets inside of quotes count like any others."""
    opening, closing = text[start], _CLOSES[text[start]]
    depth = 0
    for place in range(start, min(len(text), start + 20_000)):
        depth += (text[place] == opening) - (text[place] == closing)
        if depth == 0:
            return place + 1
    return None
