"""A user's file of new tokens: read and checked by itself, before any tokenizer is asked.

Two forms. A text file has one token on each line. A file whose name ends in `.json` holds a list; an entry is a token
as text, or an object with the fields of `ListedToken`, the names of which are those of `tokenizers.AddedToken`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.foreign.text import is_unicode, kind_of, read_json, read_text

MOST_TOKENS = 100_000
"""Tokens of a file, at most."""
LONGEST_TOKEN = 1000
"""Characters of a token, at most."""
_LARGEST_FILE = 1 << 26


@dataclass(frozen=True)
class ListedToken:
    """A token as a file states it."""

    content: str
    """Its text."""
    special: bool = False
    """Whether it is left out where ids become text; a token that is not stays readable in answers."""
    lstrip: bool = False
    """Whether blanks before it belong to it."""
    rstrip: bool = False
    """Whether blanks behind it belong to it."""
    single_word: bool = False
    """Whether it counts only where no letter touches it."""
    normalized: bool = False
    """Whether it is looked for in the text as the normaliser leaves it."""
    mean_of: str | None = None
    """Text whose pieces give the first values of its rows; None: its own."""


def read_token_list(path: Path, error: Kind) -> list[tuple[ListedToken, str]]:
    """Return the tokens of a file in its order, and of each where it stands, for errors.

    Args:
        path: the file.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: no such file, no text, no JSON list, a field that is unknown, a token that is
            empty, too long, no Unicode, or stands twice; no token at all, or too many. Names the line or the entry.
    """
    shown = printable(path)
    if not path.exists():
        raise error(f"{shown}: no such file; it lists new tokens, one on each line, or as JSON (NAME.json)")
    found = _from_json(path, error) if path.suffix.lower() == ".json" else _from_lines(path, error)
    if not found:
        raise error(f"{shown}: holds no token")
    if len(found) > MOST_TOKENS:
        raise error(f"{shown}: holds {len(found)} tokens, at most {MOST_TOKENS} are added at once")
    places: dict[str, str] = {}
    for token, where in found:
        _check_text(token.content, where, error)
        if token.mean_of is not None and (not token.mean_of.strip() or not is_unicode(token.mean_of)):
            raise error(f"{where}: mean_of: expected a text with pieces; leave it out to take the token's own text")
        if (first := places.setdefault(token.content, where)) != where:
            raise error(f"{where}: token {printable(token.content)[:80]!r} stands twice, first at {first}; remove one")
    return found


def _from_lines(path: Path, error: Kind) -> list[tuple[ListedToken, str]]:
    shown = printable(path)
    text = read_text(path, error, _LARGEST_FILE)
    found: list[tuple[ListedToken, str]] = []
    rows = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(rows[:-1] if rows[-1] == "" else rows, 1):
        where = f"{shown}:{number}"
        if not line.strip():
            raise error(f"{where}: an empty line, expected a token; remove the line")
        if line != line.strip():
            raise error(
                f"{where}: token {printable(line)[:80]!r} has white space at an end; remove it, or write the tokens as "
                "JSON (NAME.json) where it belongs to the token"
            )
        found.append((ListedToken(line), where))
    return found


def _from_json(path: Path, error: Kind) -> list[tuple[ListedToken, str]]:
    shown = printable(path)
    content: Any = read_json(path, error, _LARGEST_FILE)
    if not isinstance(content, list):
        raise error(f"{shown}: found {kind_of(content)}, expected a list of tokens")
    found: list[tuple[ListedToken, str]] = []
    for number, entry in enumerate(content):
        where = f"{shown}: [{number}]"
        if not isinstance(entry, (str, dict)):
            raise error(f"{where}: found {kind_of(entry)}, expected a token: text, or an object with its content")
        token = ListedToken(entry) if isinstance(entry, str) else typed(ListedToken, entry, where, error)
        found.append((token, where))
    return found


def _check_text(text: str, where: str, error: Kind) -> None:
    if not text.strip():
        raise error(f"{where}: an empty token; remove it")
    if not is_unicode(text) or "\0" in text:
        raise error(f"{where}: token {printable(text)[:80]!r} is no text: it has half a surrogate pair or a null")
    if len(text) > LONGEST_TOKEN:
        raise error(f"{where}: a token of {len(text)} characters, at most {LONGEST_TOKEN} are taken")
