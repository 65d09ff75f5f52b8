"""The tokens that adapters bring to their base.

A run that adds tokens and trains an adapter has a base without them. Its adapter brings the tokens, and their rows of
embedding and head (`token_rows.py`); whoever reads the base with the adapter gives the base these tokens first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.growth import Growth
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.grown_tokenizer import NewToken
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.token_differences import token_differences, token_names
from megatron_v2pe.foreign.tokenizer_folder import FolderIds, ids_of_folder
from megatron_v2pe.models.config import InternVLConfig

_log = get_logger(__name__)


def growth_of(stated: Sequence[TokenRows | None], hf: Path, model: InternVLConfig) -> Growth | None:
    """Return the tokens that a base gets of its adapters; None: they bring none that it has not.

    Args:
        stated: the rows of each adapter.
        hf: folder of the base's tokenizer and `config.json`.
        model: the base.

    Raises:
        ConfigError: adapters bring different tokens; names the difference.
        CheckpointError: tokens that the base has under another id, other tokens of the base where these would stand,
            rows without tokens, or tokens without rows; both are named.
    """
    given = [rows for rows in stated if rows is not None]
    rows_before, tokenizer = model.llm.vocab_size, None
    first: tuple[TokenRows, tuple[NewToken, ...]] | None = None
    for rows in given:
        _check_tables(rows, model)
        if not rows.tokens:
            _check_rows(rows, (), rows_before)
            continue
        tokenizer = tokenizer or ids_of_folder(hf, CheckpointError)
        if tokenizer is None:
            raise CheckpointError(
                f"{printable(hf)}: no tokenizer lies there, to which the tokens of {rows.source} could be added"
            )
        brought = tuple(_brought(rows, tokenizer, hf))
        _check_rows(rows, brought, rows_before)
        if not brought:
            continue
        if first is not None and (found := [*token_differences(_ruled(first[1]), _ruled(brought), "one", "the other")]):
            raise ConfigError(
                f"{first[0].source} and {rows.source} were trained with different new tokens: {'; '.join(found)}; use "
                "one at a time, or merge each into its base"
            )
        first = first or (rows, brought)
    return None if first is None else Growth(first[1], rows_before)


def _brought(rows: TokenRows, tokenizer: FolderIds, hf: Path) -> Iterator[NewToken]:
    """Yield the tokens that a base has not, with the pieces that the base's tokenizer has for each."""
    expected, there = tokenizer.size, set(rows.ids)
    for token in rows.tokens:
        if token.id < tokenizer.size and token.id not in there:
            continue  # of a tokenizer that states the base's own tokens too
        known, shown = tokenizer.known_id(token.content), printable(token.content)[:80]
        if known == token.id:
            continue
        if known is not None:
            raise CheckpointError(
                f"{rows.source}: brings the token {shown!r} with id {token.id}, which is token {known} of "
                f"{printable(hf)} already: that base was given other tokens; name the one it was trained on"
            )
        if token.id != expected:
            place = "has another token there" if token.id < expected else f"has {expected} ids"
            raise CheckpointError(
                f"{rows.source}: brings the token {shown!r} with id {token.id}, and the tokenizer of {printable(hf)} "
                f"{place}: that base was given other tokens; name the one it was trained on"
            )
        expected += 1
        pieces = token.pieces or tuple(tokenizer.cut(token.content))
        yield replace(token, pieces=pieces)


def _check_rows(rows: TokenRows, brought: Sequence[NewToken], rows_before: int) -> None:
    """Check that there is a row for each new token, and no row without one.

    Raises:
        CheckpointError: there is not; names the tokens, or the rows.
    """
    there = set(rows.ids)
    if without := [token for token in brought if token.id not in there]:
        names = token_names(without)
        if all(token.pieces for token in rows.tokens):
            raise CheckpointError(
                f"{rows.source}: brings {len(brought)} tokens, and has no rows for {len(without)} of them ({names}): "
                "copy it again, or save it with all of its files"
            )
        _log.warning(
            "%s: the tokenizer beside it has %d tokens more than its base, of which it has no rows (%s): theirs begin "
            "as the mean of the pieces that each replaces",
            rows.source,
            len(without),
            names,
        )
    behind = max([rows_before, *(token.id + 1 for token in brought)])
    if left := sorted(number for number in there if number >= behind):
        raise CheckpointError(
            f"{rows.source}: has {len(left)} rows behind the {behind} of its base with the tokens it brings ({left[0]} "
            f"to {left[-1]}), and does not say which tokens they are: put the files of the tokenizer it was trained "
            "with beside it (transformers' tokenizer.save_pretrained)"
        )


def _check_tables(rows: TokenRows, model: InternVLConfig) -> None:
    """Check shapes and values of rows.

    Raises:
        CheckpointError: counts or widths that disagree, or values that are no numbers.
    """
    for key, values in rows.tables.items():
        shape = (len(rows.ids), model.llm.hidden_size)
        if tuple(values.shape) != shape:
            raise CheckpointError(
                f"{rows.source}: its rows of {key} have shape {list(values.shape)}, expected {list(shape)}: a row for "
                "each token, as wide as the model"
            )
        if not torch.isfinite(values).all():
            count = int((~torch.isfinite(values)).sum())
            raise CheckpointError(f"{rows.source}: rows of {key}: {count} of {values.numel()} values are no numbers")


def _ruled(tokens: Sequence[NewToken]) -> list[NewToken]:
    """Return tokens without the pieces, of which another program's adapter says nothing."""
    return [replace(token, pieces=()) for token in tokens]


def check_one_row_each(stated: Sequence[TokenRows | None]) -> None:
    """Refuse adapters that are to be merged together and have different rows of one token.

    Raises:
        ConfigError: two have; names both.
    """
    given = [rows for rows in stated if rows is not None]
    for number, one in enumerate(given):
        for other in given[number + 1 :]:
            both = sorted({*one.ids} & {*other.ids})
            for key in one.tables.keys() & other.tables.keys() if both else ():
                theirs = [rows.tables[key][[rows.ids.index(row) for row in both]] for rows in (one, other)]
                if not torch.equal(*theirs):
                    raise ConfigError(
                        f"{one.source} and {other.source} have different rows of the tokens {both[0]} to {both[-1]}, "
                        "which stand in place of each other's: merge one of them alone"
                    )
