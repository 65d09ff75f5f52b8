"""An answer's text as it grows: decoded piece by piece, cut at the first stop string.

A piece is returned when it can no longer change: not half a character (bytes of one character may be tokens of their
own), and not what may turn out to be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 4
"""Most bytes of one character, and so most tokens it may take."""


class AnswerText:
    """Text of one answer."""

    def __init__(self, decode: Callable[[list[int]], str], stop_strings: Sequence[str] = ()) -> None:
        """Start empty.

        Args:
            decode: text of a list of token ids.
            stop_strings: texts that end the answer; they are not part of it.
        """
        assert all(stop_strings), "a stop string is empty"
        self._decode, self._stops = decode, tuple(stop_strings)
        self._ids: list[int] = []
        self._context = 0
        """First token decoded anew each time: a token's text may depend on whether others stand before it."""
        self._read = 0
        """Tokens up to the last end of a whole character: their text is in `_given` or `_pending`."""
        self._taken = ""
        """The text from `_context` on that is in `_given` or `_pending`; it may reach beyond `_read`."""
        self._waited = 0
        """Tokens since a character was last whole."""
        self._given = ""
        self._pending = ""
        self.stopped = False
        """Whether a stop string has come."""

    @property
    def text(self) -> str:
        """All text returned so far."""
        return self._given

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now, which may be empty."""
        assert not self.stopped, "the answer has ended"
        self._ids.append(token)
        self._waited += 1
        new = self._new_text(late=self._waited >= _LONGEST_CHARACTER)
        return self._advance(new, final=False) if new else ""

    def finish(self) -> str:
        """End the answer; return the text that was held back."""
        if self.stopped:
            return ""
        return self._advance(self._rest(), final=True)

    def _new_text(self, late: bool) -> str:
        """Return the text not taken yet, once its last character is whole.

        A character has at most four bytes and so at most four tokens. After as many (`late`) what is unfinished may be
        the beginning of a character whose first byte came in one token with the end of another: the characters before
        it are taken then. If there are none, it is no character that will still be finished. Some tokenizers give
        U+FFFD for every byte of a run that is no whole number of characters, also for those that were characters when
        they came: such a run is unfinished as a whole.
        """
        whole = self._decode(self._ids[self._context :])
        goes_on = whole.startswith(self._taken)
        if not goes_on or whole.endswith(_UNFINISHED):
            if not late:
                return ""
            certain = whole.rstrip(_UNFINISHED) if goes_on else ""
            if len(certain) > len(self._taken):
                new, self._taken, self._waited = certain[len(self._taken) :], certain, 0
                return new
        new, self._waited = self._rest(), 0
        if new:  # a token without text says nothing of how the next one begins
            self._context, self._read = self._read if goes_on else len(self._ids), len(self._ids)
            self._taken = self._decode(self._ids[self._context :])
        return new

    def _rest(self) -> str:
        """Return all text that is not taken yet."""
        whole = self._decode(self._ids[self._context :])
        return whole[len(self._taken) :] if whole.startswith(self._taken) else self._decode(self._ids[self._read :])

    def _advance(self, new: str, final: bool) -> str:
        """Take in new text and return what is certain."""
        self._pending += new
        found = [place for stop in self._stops if (place := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain = self._pending[: min(found)]
            self._pending = ""
        else:
            held = 0 if final else self._held_back()
            certain = self._pending[: len(self._pending) - held]
            self._pending = self._pending[len(certain) :]
        self._given += certain
        return certain

    def _held_back(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops):
                return length
        return 0
