"""Whether a needle was found: how an answer to an MM-NIAH question is judged.

Source: MM-NIAH (Wang et al., 2024) with V2PE's extensions. What the truth is decides how the response is read:

- a number (the index of the right option): a response of digits is that number; otherwise, in lower case, without
  `the answer is` and stars, up to the first dot, it must be one letter, a for 0; `none` is wrong, "the camera is moving
  left" (or `left`) is a, right b;
- a list (counts): the response is read as JSON, fences and the word `json` deleted, lists of a dictionary joined; the
  score is the share of the truth's places that agree;
- a text: equal after the same reading, or contained as whole words after `answer_words`.

Defects of the reference: `(C)` and `C) x` are no letters; surplus counts cost nothing and `true` equals 1; a truth
whose words all vanish (`a`) is found everywhere; strange digits (`²`) stop it. The corrected form reads letters
carefully, finds a list inside other text, divides by the longer list, and takes a missing answer for wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorers.answer_words import CORRECTED_NEEDLE_WORDS, NEEDLE_WORDS, holds_words
from megatron_v2pe.evaluate.scorers.base import Item, Judgement, Scorer, as_text, field
from megatron_v2pe.evaluate.scorers.mm_niah_report import percent, summarise
from megatron_v2pe.evaluate.scorers.option_letter import named_letter

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEFT, _RIGHT = "the camera is moving left", "the camera is moving right"
_JSON = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)


def _index_reference(response: str, truth: int) -> float:
    if response.isdigit():
        return float(int(response) == truth)
    text = _before_dot(response).strip()
    if text == "none":
        return 0.0
    if _LEFT in text or text == "left":
        text = "a"
    elif _RIGHT in text or text == "right":
        text = "b"
    return float(len(text) == 1 and ord(text) - ord("a") == truth)


def _list_reference(response: str, truth: Sequence[Any]) -> float:
    try:
        values = json.loads(response.replace("json", "").replace("```", "").strip())
        if isinstance(values, dict):
            values = sum(values.values(), start=[])
    except (ValueError, TypeError, RecursionError):
        return 0.0
    if not isinstance(values, list):
        return 0.0
    return sum(value == true for value, true in zip(values, truth, strict=False)) / len(truth)


def _text_reference(response: str, truth: str) -> float:
    if _before_dot(response).strip() == _before_dot(truth):
        return 1.0
    return float(holds_words(NEEDLE_WORDS(response), NEEDLE_WORDS(truth)))


def _before_dot(text: str) -> str:
    """Return a text in lower case without filler, up to its first dot, where it also loses commas and outer spaces."""
    text = text.lower().replace("the answer is", "").replace("*", "")
    return text.split(".")[0].replace(",", "").strip() if "." in text else text


def _truth(item: Item) -> Any:
    """Return the truth; counting tasks may have their list as JSON text."""
    truth = field(item, "answer")
    if "counting" not in item.get("task", "") or not isinstance(truth, str):
        return truth
    try:
        return json.loads(truth)
    except ValueError as error:
        raise DataError(f"MM-NIAH counting answer {truth!r}: it is a list, or one as JSON") from error


def _reference(item: Item) -> Judgement:
    response, truth = field(item, "prediction").strip("."), _truth(item)
    if isinstance(truth, int):
        return {"score": _index_reference(response, truth)}
    if isinstance(truth, list):
        return {"score": _list_reference(response, truth)}
    return {"score": _text_reference(response, truth)}


def _index_corrected(response: str, truth: int) -> float:
    text = response.strip(" .*\n").lower()
    if text.isascii() and text.isdigit():
        return float(int(text) == truth)
    moves = [number for number, move in enumerate(("left", "right")) if text == move or f"moving {move}" in text]
    if len(moves) == 1:
        return float(moves[0] == truth)
    letter = named_letter(response, {}, LETTERS)
    return float(letter is not None and LETTERS.index(letter) == truth)


def _list_corrected(response: Any, truth: Sequence[Any]) -> float:
    values = response if isinstance(response, (list, dict)) else _read_json(as_text(response))
    if isinstance(values, dict):
        values = [value for part in values.values() for value in (part if isinstance(part, list) else [part])]
    if not isinstance(values, list) or not truth:
        return float(values == truth)
    right = sum(_same(value, true) for value, true in zip(values, truth, strict=False))
    return right / max(len(values), len(truth))


def _read_json(text: str) -> Any:
    """Return the list or dictionary a text holds, None if it holds none."""
    found = _JSON.search(text)
    try:
        return json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None


def _same(value: Any, true: Any) -> bool:
    """Whether two counts agree: numbers as numbers, also where one is written as text."""
    return str(value).strip().lower() == str(true).strip().lower() or (
        type(value) in (int, float) and type(true) in (int, float) and value == true
    )


def _text_corrected(response: str, truth: str) -> float:
    said, true = CORRECTED_NEEDLE_WORDS(response), CORRECTED_NEEDLE_WORDS(truth)
    if not true:
        return float(response.strip().lower() == truth.strip().lower())
    return float(said == true or holds_words(said, true))


def _corrected(item: Item) -> Judgement:
    response, truth = field(item, "prediction"), _truth(item)
    if isinstance(truth, list):
        return {"score": _list_corrected(response, truth)}
    if isinstance(truth, int) and not isinstance(truth, bool):
        return {"score": _index_corrected(as_text(response), truth)}
    if isinstance(truth, str):
        return {"score": _text_corrected(as_text(response), truth)}
    raise DataError(f"MM-NIAH answer {truth!r}: it is an option's index, a list of counts or a text")


MM_NIAH = Scorer("mm_niah", _reference, _corrected, summarise, percent)
"""Items: `prediction`, `answer`, `task`, `context_length`, `placed_depth`."""
