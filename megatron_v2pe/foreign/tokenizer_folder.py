"""The tokenizer of an HF folder as a conversion looks at it: it must open and belong to the model."""

from __future__ import annotations

import os
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
    special = special_tokens(folder, error)
    settings = TokenizerSettings.read(folder, error)
    source = source_of(folder, settings.name, error)
    if source is None:
        if beside := next((name for name in (ADDED, TOKENS_MAP, CONFIG) if os.path.lexists(folder / name)), None):
            raise error(f"{printable(folder / MODEL)}: missing; {beside} beside it belongs to a tokenizer")
        return
    if source is TokenizerSource.SENTENCE_PIECES:
        size = load_pieces(folder / MODEL, error).get_piece_size()
    else:
        files = open_library(folder, source, settings, error)
        size, special = files.pieces, {name: token.id for name, token in files.added.items()}
    check_rows(size, special, rows, folder, error, source.file)
