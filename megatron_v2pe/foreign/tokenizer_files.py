"""The files of a SentencePiece tokenizer in the HF layout: opened and checked for all who need them.

Training and asking tokenise with them, a conversion checks them before it carries them along.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import sentencepiece

from megatron_v2pe.foreign.files import LFS_POINTER, Kind, read_bytes
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, check, typed
from megatron_v2pe.foreign.text import read_json_object

MODEL, CONFIG, ADDED = "tokenizer.model", "tokenizer_config.json", "added_tokens.json"
TOKENS_MAP = "special_tokens_map.json"
WHOLE = "tokenizer.json"
"""The form of the fast tokenizers: where the other two files are not written any more, it alone has the tokens."""
LARGEST_ID = 2**31 - 1
_LONGEST_TOKEN = 1000
_Id = Annotated[int, Range(0, LARGEST_ID)]
_NULL_PIECE = b"\n\x01\x00"
"""The piece that is the character U+0000, as the file holds it: field 1, of one byte, which is zero."""
_ALL_MESSAGES, _ERRORS = 0, 2
"""Levels of SentencePiece's own log: what it starts with, and the one that leaves out warnings."""


@dataclass(frozen=True)
class _AddedToken:
    """An entry of `added_tokens_decoder`; its other fields are for other programs."""

    content: str


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
        raise error(f"{shown}: no such file; the tokenizer of an InternVL2 checkpoint is a SentencePiece model")
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
    """Return the tokens of their own that a folder states, name -> id; none where it holds no such file.

    The published code reads `added_tokens.json` and `tokenizer_config.json`; only where these name no token, as
    newer versions of transformers write them, those of `tokenizer.json` count.

    Raises:
        V2PEError: of class `error`: a file that is no JSON object, an id that is no number between 0 and 2^31, an empty
            token, one token with two ids or one id with two tokens; names the file, the token, what was found and what
            was expected.
    """
    ids: dict[str, tuple[int, str]] = {}
    names: dict[int, tuple[str, str]] = {}
    found = [*_from_config(folder / CONFIG, error), *_from_list(folder / ADDED, error)]
    for name, number, where in found or _from_whole(folder / WHOLE, error):
        shown = printable(name)[:80]
        if not 0 < len(name) <= _LONGEST_TOKEN or name != name.encode("utf-8", "replace").decode():
            raise error(f"{where}: found a token of {len(name)} characters ({shown!r}), expected text of 1 to 1000")
        if (before := ids.setdefault(name, (number, where)))[0] != number:
            raise error(f"{where}: token {shown!r}: found id {number}, but {before[1]} gives it {before[0]}")
        if (other := names.setdefault(number, (name, where)))[0] != name:
            raise error(f"{where}: token {shown!r}: id {number} is taken by {printable(other[0])[:80]!r} in {other[1]}")
    return {name: number for name, (number, _) in ids.items()}


def check_rows(pieces: int, special: Mapping[str, int], rows: int, source: str | Path, error: Kind) -> None:
    """Check that a model has a row for every id of a tokenizer: code that reads both asks here.

    A token beyond the rows would be an index out of range, or worse: a row of padding, which was never trained.

    Args:
        pieces: of the SentencePiece model; 0 where there is none.
        special: tokens of their own, name -> id.
        rows: vocabulary rows of the model (`vocab_size`).
        source: folder of the tokenizer, for the error.
        error: class of the error to raise.

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
        mend = f"{MODEL} alone has {pieces} pieces, it belongs to another model"
    raise error(f"{printable(source)}: {count} tokens in the tokenizer, {rows} rows in the model{first}; {mend}")


def check_folder(folder: Path, rows: int, error: Kind) -> None:
    """Check that the tokenizer of a folder loads, and that the model has a row for every id; a folder may have none.

    Args:
        folder: of an HF checkpoint.
        rows: vocabulary rows of the model (`vocab_size`).
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: see `load_pieces`, `special_tokens` and `check_rows`, or the SentencePiece model is
            missing and other files of a tokenizer are there; the file is named.
    """
    special = special_tokens(folder, error)
    size = 0
    if os.path.lexists(folder / MODEL):
        size = load_pieces(folder / MODEL, error).get_piece_size()
    elif beside := next((name for name in (ADDED, TOKENS_MAP, CONFIG) if os.path.lexists(folder / name)), None):
        raise error(f"{printable(folder / MODEL)}: missing; {beside} beside it belongs to a tokenizer")
    check_rows(size, special, rows, folder, error)


def _from_config(path: Path, error: Kind) -> list[tuple[str, int, str]]:
    fields = Fields(_object(path, error), printable(path), error)
    where = f"{fields.source}: added_tokens_decoder"
    found: list[tuple[str, int, str]] = []
    for number, entry in fields.get("added_tokens_decoder", dict, {}).items():
        if not re.fullmatch(r"[0-9]{1,10}", number) or int(number) > LARGEST_ID:
            raise error(f"{where}: found {printable(number)[:40]!r}, expected an id between 0 and {LARGEST_ID}")
        token = typed(_AddedToken, entry, f"{where}: {number}", error, unknown=True)
        found.append((token.content, int(number), f"{where}: {number}"))
    return found


def _from_whole(path: Path, error: Kind) -> list[tuple[str, int, str]]:
    fields = Fields(_object(path, error), printable(path), error)
    found: list[tuple[str, int, str]] = []
    for place, entry in enumerate(fields.get("added_tokens", list[dict[str, Any]], [])):
        token = Fields(entry, f"{fields.source}: added_tokens[{place}]", error)
        found.append((token.text("content"), token.get("id", _Id), token.source))
    return found


def _from_list(path: Path, error: Kind) -> list[tuple[str, int, str]]:
    ids = check(dict[str, _Id], _object(path, error), printable(path), error)
    return [(name, number, printable(path)) for name, number in ids.items()]


def _object(path: Path, error: Kind) -> dict[str, Any]:
    """Return the object of a JSON file, an empty one where there is no such file."""
    return read_json_object(path, error, 1 << 26, unique=True) if os.path.lexists(path) else {}
