"""Text that fills a conversation to the last token.

Tokens do not add up where texts meet, so a length is not computed but found: a text is cut to about the right length
and put in, the whole is counted, and the cut is moved by what it was off.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice

from megatron_v2pe.workshop.long_context.budget import TokenBudget

_WORD = re.compile(r"[\u2e80-\U0010ffff]|[^\s\u2e80-\U0010ffff]{1,40}")
"""A word, no longer than 40 characters; a single character where a script writes no spaces."""
_MARKS = ".,;:!?-aeiou0123456789"
"""Last resort where no word of the text has the tokens that are missing."""
_ROUNDS = 6
_CANDIDATES = 3
"""Texts of one length that are tried: their last words decide how they join what follows."""
_TAIL = 48
"""Characters at the end of a text that the cost of another word is first measured behind."""
_LOOKED_AT = 2_000
"""Characters of the source that words are taken from."""
_BACKWARDS = 12
"""Words that are given up at most where the missing tokens cannot be made up."""


def fill(budget: TokenBudget, source: str, target: int, count: Callable[[str], int]) -> str | None:
    """Return the beginning of a text with which a conversation has exactly `target` tokens.

    Args:
        budget: counts tokens.
        source: text to take it from; it is to be a line of its own.
        target: tokens wanted.
        count: tokens of the conversation with the text it is given; for no text, without the line.

    Returns:
        The text, a few words of it said again at its end where it takes that; None where nothing can be filled: no room
        for a token, or `source` is too short.
    """
    asked = target - count("")
    for _ in range(_ROUNDS):
        excess = None
        for text in islice(_beginnings(budget, source, asked), _CANDIDATES):
            excess = count(text) - target
            if excess == 0:
                return text
        if excess is None:
            return None
        asked -= excess
    return None


def _beginnings(budget: TokenBudget, source: str, tokens: int) -> Iterator[str]:
    """Yield beginnings of `source` that are lines of exactly `tokens` tokens."""
    ends = [match.end() for match in _WORD.finditer(source)]
    if tokens < 1 or not ends or budget.line(source) < tokens:
        return
    words = bisect_right(ends, tokens, key=lambda end: budget.line(source[:end]))
    for kept in range(words, max(words - _BACKWARDS, -1), -1):
        end = ends[kept - 1] if kept else 0
        following = f"{source[end : end + _LOOKED_AT]} {source[:_LOOKED_AT]}"
        text = _mended(budget, source[:end].lstrip(), tokens, following)
        if text is not None:
            yield text


def _mended(budget: TokenBudget, text: str, tokens: int, words: str) -> str | None:
    """Return `text` with words appended, the largest that fit first, until its line has exactly `tokens` tokens."""
    endings = dict.fromkeys([*(f" {match[0]}" for match in _WORD.finditer(words)), *_MARKS])
    missing = tokens - (budget.line(text) if text else 0)
    while missing > 0:
        tail = text[text.rfind(" ", 0, -_TAIL) + 1 :] if len(text) > _TAIL else text
        before = budget.line(tail) if tail else 0
        likely = {budget.line((tail + ending).strip()) - before: ending for ending in reversed(endings)}
        for cost in sorted((cost for cost in likely if 0 < cost <= missing), reverse=True):
            longer = (text + likely[cost]).strip()
            left = tokens - budget.line(longer)
            if 0 <= left < missing:  # words before the tail may join in
                text, missing = longer, left
                break
        else:
            return None
    return text if text and missing == 0 else None
