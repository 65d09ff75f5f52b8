"""The files of a tokenizer in the HF layout: opened and checked for all who need them.

Training and asking tokenise with them, a conversion checks them before it carries them along. Which of the files count
is decided by `tokenizer_settings.source_of`; those of the `tokenizers` library are opened by `library_files`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import sentencepiece

from megatron_v2pe.foreign.files import LFS_POINTER, Kind, read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, check, typed
from megatron_v2pe.foreign.tokenizer_settings import (
    ADDED,
    CONFIG,
    MERGES,
    MODEL,
    VOCABULARY,
    WHOLE,
    json_object,
    role_tokens,
)

LARGEST_ID = 2**31 - 1
_LONGEST_TOKEN = 1000
_Id = Annotated[int, Range(0, LARGEST_ID)]
_NULL_PIECE = b"\n\x01\x00"
"""The piece that is the character U+0000, as the file holds it: field 1, of one byte, which is zero."""
_ALL_MESSAGES, _ERRORS = 0, 2
"""Levels of SentencePiece's own log: what it starts with, and the one that leaves out warnings."""


@dataclass(frozen=True)
class AddedToken:
    """A token of its own: found in a text before anything else is, and never part of a piece."""

    content: str
    id: int
    lstrip: bool = False
    """Whether blanks before it belong to it."""
    rstrip: bool = False
    """Whether blanks behind it belong to it."""
    single_word: bool = False
    """Whether it counts only where no letter touches it."""
    normalized: bool = False
    """Whether it is looked for in the text as the normaliser leaves it."""
    special: bool = True
    """Whether it is left out where ids become text."""


@dataclass(frozen=True)
class _Entry:
    """An entry of `added_tokens_decoder`; its other fields are for other programs."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None
    special: bool = False

    def token(self, number: int) -> AddedToken:
        """Return it with its id; what `normalized` is by default stands in the class AddedToken of `tokenizers`."""
        normalized = not self.special if self.normalized is None else self.normalized
        return AddedToken(self.content, number, self.lstrip, self.rstrip, self.single_word, normalized, self.special)


def load_pieces(path: str | Path, error: Kind) -> Any:
    """Load a SentencePiece model.

    Args:
        path: `tokenizer.model`.
        error: class of the error to raise, as in all functions of this file.

    Raises:
        V2PEError: of class `error`: no such file, no regular file, empty, or no SentencePiece model.
    """
    shown = printable(path)
    if not os.path.lexists(path):
        raise error(
            f"{shown}: no such file; a tokenizer is {MODEL} (SentencePiece), {WHOLE}, or {VOCABULARY} with {MERGES}"
        )
    content = read_bytes(path, error)
    if content.startswith(LFS_POINTER):
        raise error(f"{shown}: a Git LFS pointer of {len(content)} bytes, not the tokenizer; run `git lfs pull`")
    try:
        pieces = sentencepiece.SentencePieceProcessor()
        with _no_word_of_null_piece(content):
            loaded = bool(content) and pieces.LoadFromSerializedProto(content) and pieces.get_piece_size()
    except Exception as problem:  # third-party: RuntimeError or OSError, by version
        raise error(f"{shown}: not a SentencePiece model: {printable(problem)[:200]}") from problem
    if not loaded:
        raise error(f"{shown}: not a SentencePiece model: {len(content)} bytes without a piece")
    return pieces


@contextlib.contextmanager
def _no_word_of_null_piece(content: bytes) -> Iterator[None]:
    """Leave out SentencePiece's warnings while it loads a model with a piece U+0000, as that of InternVL2 is.

    Release 0.2.3 warns of that piece at every start, from C++ to the process's standard error, and treats it as unused;
    `data.tokenizer` still gives it its id, so the user has nothing to do. Models without such a piece, and errors
    of any model, are reported as before.
    """
    if _NULL_PIECE not in content:
        yield
        return
    sentencepiece.SetMinLogLevel(_ERRORS)
    try:
        yield
    finally:
        sentencepiece.SetMinLogLevel(_ALL_MESSAGES)


def special_tokens(folder: Path, error: Kind) -> dict[str, int]:
    """Return the tokens of their own that a folder states, name -> id; for the rest see `added_tokens`."""
    return {name: token.id for name, token in added_tokens(folder, error).items()}


def added_tokens(folder: Path, error: Kind) -> dict[str, AddedToken]:
    """Return the tokens of their own that a folder states, by name; none where it holds no such file.

    The published code reads `added_tokens.json` and `tokenizer_config.json`; only where these name no token, as
    newer versions of transformers write them, those of `tokenizer.json` count.

    Raises:
        V2PEError: of class `error`: a file that is no JSON object, an id that is no number between 0 and 2^31, an empty
            token, one token with two ids or one id with two tokens; names the file, the token, what was found and what
            was expected.
    """
    found = [*_from_config(folder / CONFIG, error), *_from_list(folder / ADDED, error)]
    return collected(found or tokens_of_whole(folder / WHOLE, error), error)


def shown_tokens(folder: Path, error: Kind) -> frozenset[str]:
    """Return the tokens of their own of which a folder says that they are not special: they are part of a text.

    `added_tokens.json` does not say so of any.

    Raises:
        V2PEError: of class `error`: see `added_tokens`.
    """
    found = _from_config(folder / CONFIG, error) or tokens_of_whole(folder / WHOLE, error)
    return frozenset(token.content for token, _ in found if not token.special) - role_tokens(folder, error)


def collected(found: Iterable[tuple[AddedToken, str]], error: Kind) -> dict[str, AddedToken]:
    """Return tokens by name; a name that comes again keeps what was said of it first.

    Args:
        found: tokens, and where each stands.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: see `added_tokens`.
    """
    tokens: dict[str, tuple[AddedToken, str]] = {}
    names: dict[int, tuple[str, str]] = {}
    for token, where in found:
        name, number = token.content, token.id
        shown = printable(name)[:80]
        if not 0 < len(name) <= _LONGEST_TOKEN or name != name.encode("utf-8", "replace").decode():
            raise error(f"{where}: found a token of {len(name)} characters ({shown!r}), expected text of 1 to 1000")
        if (before := tokens.setdefault(name, (token, where)))[0].id != number:
            raise error(f"{where}: token {shown!r}: found id {number}, but {before[1]} gives it {before[0].id}")
        if (other := names.setdefault(number, (name, where)))[0] != name:
            raise error(f"{where}: token {shown!r}: id {number} is taken by {printable(other[0])[:80]!r} in {other[1]}")
    return {name: token for name, (token, _) in tokens.items()}


def check_rows(
    pieces: int, special: Mapping[str, int], rows: int, source: str | Path, error: Kind, file: str = MODEL
) -> None:
    """Check that a model has a row for every id of a tokenizer: code that reads both asks here.

    A token beyond the rows would be an index out of range, or worse: a row of padding, which was never trained.

    Args:
        pieces: ids without those of tokens of their own; 0 where there is no tokenizer.
        special: tokens of their own, name -> id.
        rows: vocabulary rows of the model (`vocab_size`).
        source: folder of the tokenizer, for the error.
        error: class of the error to raise.
        file: name of the file that holds the pieces.

    Raises:
        V2PEError: of class `error`: the model has fewer rows; names both numbers, the first token without a row, and
            what to do.
    """
    beyond = sorted((number, name) for name, number in special.items() if number >= rows)
    count = max([pieces, *(number + 1 for number in special.values())])
    if count <= rows:
        return
    first = f"; {printable(beyond[0][1])[:80]!r} has id {beyond[0][0]}" if beyond else ""
    mend = (
        "tokens were added without resizing the model: remove them, or resize it (resize_token_embeddings), save both"
    )
    if pieces > rows:
        mend = f"{file} alone has {pieces} pieces, it belongs to another model"
    raise error(f"{printable(source)}: {count} tokens in the tokenizer, {rows} rows in the model{first}; {mend}")


def _from_config(path: Path, error: Kind) -> list[tuple[AddedToken, str]]:
    fields = Fields(json_object(path, error), printable(path), error)
    where = f"{fields.source}: added_tokens_decoder"
    found: list[tuple[AddedToken, str]] = []
    for number, entry in fields.get("added_tokens_decoder", dict, {}).items():
        if not re.fullmatch(r"[0-9]{1,10}", number) or int(number) > LARGEST_ID:
            raise error(f"{where}: found {printable(number)[:40]!r}, expected an id between 0 and {LARGEST_ID}")
        token = typed(_Entry, entry, f"{where}: {number}", error, unknown=True)
        found.append((token.token(int(number)), f"{where}: {number}"))
    return found


def tokens_of_whole(path: Path, error: Kind) -> list[tuple[AddedToken, str]]:
    """Return the tokens that a `tokenizer.json` states, and where each stands; none where there is no such file.

    Raises:
        V2PEError: of class `error`: see `added_tokens`.
    """
    return tokens_in(json_object(path, error), printable(path), error)


def tokens_in(content: dict[str, Any], source: str, error: Kind) -> list[tuple[AddedToken, str]]:
    """Return the same of the content of a `tokenizer.json`, for which `source` stands in errors."""
    found: list[tuple[AddedToken, str]] = []
    for place, entry in enumerate(Fields(content, source, error).get("added_tokens", list[dict[str, Any]], [])):
        where = f"{source}: added_tokens[{place}]"
        number = Fields(entry, where, error).get("id", _Id)
        found.append((typed(_Entry, entry, where, error, unknown=True).token(number), where))
    return found


def _from_list(path: Path, error: Kind) -> list[tuple[AddedToken, str]]:
    ids = check(dict[str, _Id], json_object(path, error), printable(path), error)
    roles = role_tokens(path.parent, error) if ids else frozenset[str]()
    return [
        (AddedToken(name, number, normalized=name not in roles, special=name in roles), printable(path))
        for name, number in ids.items()
    ]
