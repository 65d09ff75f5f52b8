"""The words of a question and of the prompt it was asked with, compared without their images."""

from __future__ import annotations

import re
from collections.abc import Sequence

_IMAGES = re.compile(r"<image(?: of \d+ tiles)?>")


def told(turns: Sequence[tuple[str, str]]) -> str:
    """Return turns as one text."""
    return "\n".join(f"{role}: {words}" for role, words in turns)


def words_of(prompt: str) -> str:
    """Return the text of turns, `told` or as an answer holds them, without its images."""
    return _IMAGES.sub("", prompt)
