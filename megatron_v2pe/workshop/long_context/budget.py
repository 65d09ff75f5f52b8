"""Tokens of a conversation before it is finished.

Special tokens are cut out of a text before anything is tokenised, so a conversation's length is the sum over the
stretches between images, and images at their own cost. Stretches are counted once and remembered; the sum is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from megatron_v2pe.data.special_tokens import IMG_END
from megatron_v2pe.workshop.long_context.pipeline import PLACEHOLDER, Encoding, Turns

_REMEMBERED_CHARACTERS = 2_000


class TokenBudget:
    """Counts tokens under one encoding."""

    def __init__(self, encoding: Encoding) -> None:
        """Count under `encoding`."""
        self.encoding = encoding
        self._remember = lru_cache(maxsize=16_384)(self._encoded)

    def __reduce__(self) -> tuple[type[TokenBudget], tuple[Encoding]]:
        """Start anew in another process."""
        return TokenBudget, (self.encoding,)

    def text(self, text: str) -> int:
        """Return the tokens of a text without images, as if it stood alone."""
        return self._remember(text) if len(text) <= _REMEMBERED_CHARACTERS else self._encoded(text)

    def image(self, tiles: int) -> int:
        """Return the tokens of an image: its tiles and the two marks around them."""
        return tiles * self.encoding.tokens_per_tile + 2

    def conversation(self, turns: Turns, tiles: Sequence[int]) -> int:
        """Return the tokens of a conversation, with those before every text; the k-th placeholder has `tiles[k]` tiles.

        What stands behind an image is counted behind its mark: some tokenizers treat the beginning of a text otherwise.
        """
        count = len(self.encoding.tokenizer.before) + sum(map(self.image, tiles))
        for message in self.encoding.messages(turns):
            first, *behind = message.split(PLACEHOLDER)
            count += self.text(first) + sum(self.text(IMG_END + part) - 1 for part in behind)
        return count

    def line(self, text: str) -> int:
        """Return the tokens a line adds to a text of lines; newlines may join the words they stand between."""
        return self.text(f"\n{text}\n") - self.text("\n")

    def _encoded(self, text: str) -> int:
        return len(self.encoding.encode(text))
