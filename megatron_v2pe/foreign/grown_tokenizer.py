"""The files of a tokenizer with new tokens of their own, and the record of which tokens were added to a checkpoint.

What transformers writes after `add_tokens` is written here without it: `tokenizer.json`, `added_tokens.json` and
`tokenizer_config.json` (`added_tokens_decoder`) state every new token where they state the others, and special ones
stand in the lists of special tokens. `new_tokens.json` beside them is this project's: the tokens that were added and
the pieces whose rows were their first values. Other programs pass it over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields, Range, typed
from megatron_v2pe.foreign.tokenizer_files import LARGEST_ID, AddedToken, added_tokens
from megatron_v2pe.foreign.tokenizer_settings import (
    ADDED,
    CONFIG,
    TOKENS_MAP,
    WHOLE,
    TokenizerSettings,
    TokenizerSource,
    json_object,
    source_of,
)

RECORD = "new_tokens.json"
"""File of a checkpoint's `hf/`, and of exports, that records which tokens were added."""
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class NewToken:
    """A token that is added to a checkpoint."""

    content: str
    """Its text."""
    id: Annotated[int, Range(0, LARGEST_ID)]
    pieces: tuple[Annotated[int, Range(0, LARGEST_ID)], ...]
    """Ids of the tokenizer before, the mean of whose rows its rows begin with; at least one."""
    special: bool = False
    """As in `AddedToken`, like all that follow."""
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def added(self) -> AddedToken:
        """The token as a tokenizer has it."""
        rules = {name: value for name, value in asdict(self).items() if name != "pieces"}
        return AddedToken(**rules)


@dataclass(frozen=True)
class _Record:
    """What `new_tokens.json` holds."""

    tokens: tuple[NewToken, ...]
    format_version: Annotated[int, Range(1, 1)] = 1


def read_new_tokens(folder: Path, error: Kind) -> tuple[NewToken, ...]:
    """Return the tokens that were added to a checkpoint, in the order of their ids; none where no record lies there.

    Args:
        folder: `hf/` of a Megatron checkpoint, or an HF folder.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: the record is damaged.
    """
    path = folder / RECORD
    content = json_object(path, error)
    return typed(_Record, content, printable(path), error).tokens if content else ()


def grown_tokenizer_files(folder: Path, tokens: Sequence[NewToken], error: Kind) -> dict[str, str]:
    """Return the files of a folder's tokenizer with new tokens, and the record: name -> content, what changes alone.

    Args:
        folder: with the files of a tokenizer of any kind.
        tokens: with their ids.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: a file is damaged.
    """
    own = [token.added for token in tokens]
    before = read_new_tokens(folder, error)
    record = {"format_version": 1, "tokens": [asdict(token) for token in (*before, *tokens)]}
    return {**_changed(folder, folder, own, error), RECORD: _text(record)}


def changed_beside(folder: Path, beside: Path, tokens: Sequence[NewToken], error: Kind) -> dict[str, str]:
    """Return the same of files of a tokenizer whose other files lie in `folder`, without the record.

    Args:
        folder: of the tokenizer.
        beside: folder of files that stand in place of those in `folder` in another layout.
        tokens: with their ids.
        error: class of the error to raise.
    """
    return _changed(beside, folder, [token.added for token in tokens], error)


def _changed(folder: Path, whole: Path, tokens: Sequence[AddedToken], error: Kind) -> dict[str, str]:
    """Return the files in `folder` that change; `whole` is the folder of the whole tokenizer."""
    files: dict[str, str] = {}
    special = [token.content for token in tokens if token.special]
    library = json_object(folder / WHOLE, error)
    if library:
        stated = Fields(library, printable(folder / WHOLE), error).get("added_tokens", list[dict[str, Any]], [])
        entries = [{"id": token.id, **_rules(token)} for token in tokens]
        files[WHOLE] = _text({**library, "added_tokens": [*stated, *entries]})
    if os.path.lexists(folder / ADDED):
        ids = json_object(folder / ADDED, error)
        files[ADDED] = _text({**ids, **{token.content: token.id for token in tokens}})
    config = json_object(folder / CONFIG, error)
    decoder = Fields(config, printable(folder / CONFIG), error).get("added_tokens_decoder", dict, {})
    if decoder or not library and folder == whole:
        if not decoder:  # what `added_tokens.json` alone states has no rules there, and a new token has some
            decoder = {str(token.id): _rules(token) for token in _stated(whole, error)}
        decoder = {**decoder, **{str(token.id): _rules(token) for token in tokens}}
        files[CONFIG] = _text(_with_special({**config, "added_tokens_decoder": decoder}, special, make=not library))
    elif special and any(isinstance(config.get(name), list) for name in _LISTS):
        files[CONFIG] = _text(_with_special(config, special, make=False))
    mapped = json_object(folder / TOKENS_MAP, error)
    if special and any(isinstance(mapped.get(name), list) for name in _LISTS):
        files[TOKENS_MAP] = _text(_with_special(mapped, special, make=False))
    return files


def _stated(folder: Path, error: Kind) -> list[AddedToken]:
    """Return the tokens that `added_tokens.json` states; a tokenizer of SentencePiece's kind takes all for special."""
    kind = source_of(folder, TokenizerSettings.read(folder, error).name, error)
    left_out = kind is TokenizerSource.SENTENCE_PIECES
    return [replace(token, special=token.special or left_out) for token in added_tokens(folder, error).values()]


def _with_special(content: Mapping[str, Any], names: Sequence[str], make: bool) -> dict[str, Any]:
    """Return settings whose list of special tokens names further ones; where there is no list, one may be made."""
    listed = next((name for name in _LISTS if isinstance(content.get(name), list)), None)
    if not names or listed is None and (not make or "extra_special_tokens" in content):
        return dict(content)
    name = listed or _LISTS[0]
    return {**content, name: [*content.get(name, []), *names]}


def _rules(token: AddedToken) -> dict[str, Any]:
    return {name: value for name, value in asdict(token).items() if name != "id"}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
