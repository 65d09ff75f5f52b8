"""The tokenizer of an HF folder as a conversion looks at it: it must open and belong to the model; which ids it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.library_files import open_library
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_files import check_rows, load_pieces, special_tokens
from megatron_v2pe.foreign.tokenizer_settings import (
    ADDED,
    CONFIG,
    MODEL,
    TOKENS_MAP,
    VOCABULARY,
    WHOLE,
    TokenizerSettings,
    TokenizerSource,
    source_of,
)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a file with the vocabulary of a tokenizer, of whichever kind."""
    return any(os.path.lexists(folder / name) for name in (MODEL, WHOLE, VOCABULARY))


def check_folder(folder: Path, rows: int, error: Kind) -> None:
    """Check that the tokenizer of a folder loads, and that the model has a row for every id; a folder may have none.

    Args:
        folder: of an HF checkpoint.
        rows: vocabulary rows of the model (`vocab_size`).
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: see `load_pieces`, `open_library`, `added_tokens` and `check_rows`, or no file has
            a vocabulary and other files of a tokenizer are there; the file is named.
    """
    found = ids_of_folder(folder, error)
    if found is not None:
        check_rows(found.pieces, found.own, rows, folder, error, found.file)


@dataclass(frozen=True)
class FolderIds:
    """Which ids the tokenizer of a folder has, and what it cuts a text into; prompts are cut by `data/tokenizer.py`."""

    file: str
    """That holds the vocabulary."""
    pieces: int
    """Ids without those of tokens of their own: one more than the largest."""
    own: Mapping[str, int]
    """Tokens of their own, by name."""
    known_id: Callable[[str], int | None]
    """Returns the id of the token or piece that is spelled so; None where there is none."""
    cut: Callable[[str], list[int]]
    """Returns the ids of a text that stands alone."""

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest."""
        return max([self.pieces, *(number + 1 for number in self.own.values())])


def ids_of_folder(folder: Path, error: Kind) -> FolderIds | None:
    """Return the ids that the tokenizer of a folder has; None: the folder has none.

    Args:
        folder: of an HF checkpoint.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: see `check_folder`, but for `check_rows`.
    """
    special = special_tokens(folder, error)
    settings = TokenizerSettings.read(folder, error)
    source = source_of(folder, settings.name, error)
    if source is None:
        if beside := next((name for name in (ADDED, TOKENS_MAP, CONFIG) if os.path.lexists(folder / name)), None):
            raise error(f"{printable(folder / MODEL)}: missing; {beside} beside it belongs to a tokenizer")
        return None
    if source is TokenizerSource.SENTENCE_PIECES:
        model = load_pieces(folder / MODEL, error)

        def known(text: str) -> int | None:
            number = model.piece_to_id(text)
            return special.get(text, None if number == model.unk_id() else number)

        return FolderIds(source.file, model.get_piece_size(), special, known, model.encode)
    files = open_library(folder, source, settings, error)
    own = {name: token.id for name, token in files.added.items()}
    library = files.library
    return FolderIds(
        source.file,
        files.pieces,
        own,
        library.token_to_id,
        lambda text: library.encode(text, add_special_tokens=False).ids,
    )
