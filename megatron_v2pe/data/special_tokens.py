"""Tokens of their own: found in a text before anything else, so that no piece runs across them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from megatron_v2pe.foreign.tokenizer_settings import IMG_CONTEXT, IMG_END, IMG_START

NEEDED = (IMG_START, IMG_END, IMG_CONTEXT)
"""Tokens an InternVL tokenizer must have."""


class SpecialTokens:
    """Cuts texts at special tokens; the longest of several that begin at one place counts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        """Take the tokens, name -> id."""
        self.ids = ids

    def encode(self, text: str, pieces: Callable[[str], list[int]]) -> list[int]:
        """Return the ids of a text; what lies between special tokens is encoded by `pieces`."""
        if not self.ids:
            return pieces(text) if text else []
        ids: list[int] = []
        end = 0
        first, pattern = self._common_pattern
        if any(character in text for character in self._first_characters if character != first):
            pattern = self._pattern
        for match in pattern.finditer(text):
            if match.start() > end:
                ids += pieces(text[end : match.start()])
            repeats, name = match[0], match[0]
            if match.lastgroup == "context":
                name = IMG_CONTEXT
            ids += [self.ids[name]] * (len(repeats) // len(name))
            end = match.end()
        return ids + (pieces(text[end:]) if end < len(text) else [])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return self._pattern_of(self.ids)

    @cached_property
    def _first_characters(self) -> list[str]:
        """First characters of special tokens, the most frequent first."""
        return [character for character, _ in Counter(name[0] for name in self.ids).most_common()]

    @cached_property
    def _common_pattern(self) -> tuple[str, re.Pattern[str]]:
        """The most frequent first character, and a pattern for the tokens that begin with it: several times as fast."""
        first = self._first_characters[0]
        return first, self._pattern_of([name for name in self.ids if name.startswith(first)])

    @staticmethod
    def _pattern_of(special: Iterable[str]) -> re.Pattern[str]:
        """Return a pattern that matches any of these tokens, the longest first, and a run of `<IMG_CONTEXT>` at once.

        A first character that all of them share stands once before the alternatives: `<(?:img>|/img>|...)` fails at
        once where there is no `<`.
        """
        names = sorted(special, key=len, reverse=True)
        shared = names[0][0] if len({name[0] for name in names}) == 1 else ""
        alternatives: list[str] = []
        if IMG_CONTEXT in names:
            rest = re.escape(IMG_CONTEXT[len(shared) :])
            alternatives.append(f"(?P<context>{rest}(?:{re.escape(IMG_CONTEXT)})*)")
        alternatives += [re.escape(name[len(shared) :]) for name in names if name != IMG_CONTEXT]
        return re.compile(f"{re.escape(shared)}(?:{'|'.join(alternatives)})")
