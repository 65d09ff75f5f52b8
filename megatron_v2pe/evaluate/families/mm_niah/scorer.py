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
carefully, finds the list an answer states (`stated_list`), divides by the longer list, looks for a text in what the
answer does not reject (`stated_answer`), and takes a missing answer for wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.mm_niah.stated_list import joined, stated_list
from megatron_v2pe.evaluate.families.mm_niah.summary import needle_of, percent, summarise
from megatron_v2pe.evaluate.scorers.answer_words import (
    CORRECTED_NEEDLE_WORDS,
    NEEDLE_NUMBERS,
    NEEDLE_WORDS,
    holds_words,
)
from megatron_v2pe.evaluate.scorers.base import Item, Judgement, Scorer, as_text, field
from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain, trimmed
from megatron_v2pe.evaluate.scorers.stated_answer import stands_in, without_rejected
from megatron_v2pe.evaluate.scorers.stated_option import named_letter

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEFT, _RIGHT = "the camera is moving left", "the camera is moving right"


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


def _index_corrected(response: str, truth: int, options: Mapping[str, str]) -> float:
    text = plain(clean_answer(response))
    if text.isascii() and text.isdecimal():
        return float((text.lstrip("0") or "0") == str(truth))
    said = without_rejected(response, ()).lower()
    moves = [number for number, move in enumerate(("left", "right")) if text == move or f"moving {move}" in said]
    if len(moves) == 1:
        return float(moves[0] == truth)
    letter = named_letter(response, options, () if options else LETTERS)
    return float(letter is not None and LETTERS.index(letter) == truth)


def _list_corrected(response: Any, truth: Sequence[Any]) -> float:
    values = joined(response) if isinstance(response, (list, dict)) else stated_list(as_text(response))
    if values is None or not truth:
        return float(values == truth)
    right = sum(_same(value, true) for value, true in zip(values, truth, strict=False))
    return right / max(len(values), len(truth))


def _same(value: Any, true: Any) -> bool:
    """Whether two counts agree: numbers as numbers, also where one is written as text or in words."""
    said, meant = (plain(str(count)) for count in (value, true))
    said, meant = NEEDLE_NUMBERS.get(said, said), NEEDLE_NUMBERS.get(meant, meant)
    if said == meant:
        return True
    try:
        return not isinstance(value, bool) and not isinstance(true, bool) and float(said) == float(meant)
    except ValueError:
        return False


def _text_corrected(response: str, truth: str) -> float:
    whole, true = CORRECTED_NEEDLE_WORDS(trimmed(clean_answer(response))), CORRECTED_NEEDLE_WORDS(trimmed(truth))
    if not true:
        return float(plain(clean_answer(response)) == plain(truth))
    return float(whole == true or stands_in(CORRECTED_NEEDLE_WORDS(without_rejected(response, [truth])), true))


def _corrected(item: Item) -> Judgement:
    response, truth = field(item, "prediction"), _truth(item)
    if isinstance(truth, list):
        return {"score": _list_corrected(response, truth)}
    if isinstance(truth, int) and not isinstance(truth, bool):
        return {"score": _index_corrected(as_text(response), truth, item.get("options") or {})}
    if isinstance(truth, str):
        return {"score": _text_corrected(as_text(response), truth)}
    raise DataError(f"MM-NIAH answer {truth!r}: it is an option's index, a list of counts or a text")


MM_NIAH = Scorer("mm_niah", _reference, _corrected, summarise, percent, needle=needle_of)
"""Items: `prediction`, `answer`, `task`, `context_length`, `placed_depth`, and `options` of a choice where known."""
SCORERS = (MM_NIAH,)
