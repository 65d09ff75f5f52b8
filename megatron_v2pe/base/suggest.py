"""Words a user may have meant: the end of a message about a name that is not known, in one form for all tools."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

_MOST_LISTED = 40
_LONGEST = 100


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known words that are most like `word`, best first; none where nothing is like it.

    A dotted word that names a known last part in another section is taken for that one.

    Args:
        word: what was written; only its first 100 characters count.
        known: words that would be right.
        most: how many to return at most.
    """
    names, word = list(known), word[:_LONGEST]
    last = word.rpartition(".")[2]
    elsewhere = [name for name in names if "." in word and name.rpartition(".")[2] == last]
    return elsewhere[:most] or difflib.get_close_matches(word, names, n=most, cutoff=0.6)


def did_you_mean(
    word: str,
    known: Iterable[str],
    prefix: str = "",
    otherwise: str | None = None,
    spelt: Callable[[str], str] = str,
) -> str:
    """Return the end of a message about an unknown word: `; did you mean ...?`, or what is known.

    Args:
        word: what was written.
        known: words that would be right.
        prefix: stands before each of them, such as `--`.
        otherwise: text where nothing is near; by default all known words where they are 40 or fewer.
        spelt: returns a known word as it is to be written, where that differs.
    """
    names = list(known)
    if near := nearest(word, names):
        return f"; did you mean {' or '.join(prefix + spelt(name) for name in near)}?"
    if otherwise is not None:
        return f"; {otherwise}"
    return f"; known here: {', '.join(names)}" if len(names) <= _MOST_LISTED else ""
