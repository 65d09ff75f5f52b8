"""Rows of the vocabulary's tables that an adapter has in place of its base's, and what is known of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.grown_tokenizer import RECORD, NewToken, read_new_tokens
from megatron_v2pe.foreign.tokenizer_files import added_tokens


@dataclass(frozen=True)
class TokenRows:
    """Rows of the tables, and what is known of their tokens."""

    source: str
    """Where they were read, for messages."""
    ids: tuple[int, ...]
    """Row of the table that each row here stands in place of."""
    tables: Mapping[str, Tensor]
    """Key of a table (`growth.TABLES`) -> [rows here, columns]; of a tied model the embedding alone."""
    tokens: tuple[NewToken, ...] = ()
    """Tokens that their folder states, see `tokens_beside`; without pieces where another program wrote it."""
    tokenizer: Path | None = None
    """Folder of the tokenizer with these tokens."""

    @property
    def are_whole(self) -> bool:
        """Whether they are a whole table, from its first row on."""
        return self.ids == tuple(range(len(self.ids)))

    def of_key(self, rows: int) -> Tensor:
        """Return for each row of a table of so many the row here that stands in its place, int64; -1: none."""
        places = torch.full((max(rows, max(self.ids) + 1),), -1)
        places[torch.tensor(self.ids)] = torch.arange(len(self.ids))
        return places[:rows]

    def part(self, key: str, begin: int, held: int) -> tuple[Tensor, Tensor]:
        """Return what stands in a part of a table: which rows of the part, int64 [n], and their values [n, columns].

        Args:
            key: of the table.
            begin: first row of the part.
            held: rows of the part.
        """
        places = self.of_key(begin + held)[begin:]
        at = torch.nonzero(places >= 0).flatten()
        return at, self.tables[key][places[at]]

    def put(self, key: str, view: Tensor, begin: int) -> None:
        """Copy rows into a part of a table that begins at a row."""
        at, values = self.part(key, begin, view.shape[0])
        view[at.to(view.device)] = values.to(view.device, view.dtype)


def tokens_beside(folder: Path) -> tuple[NewToken, ...]:
    """Return the tokens that a folder of an adapter states, in the order of their ids.

    Args:
        folder: with the record of new tokens of this project; or with the files of a tokenizer, whole or in part, all
            of whose tokens of their own count, those of the base among them.

    Raises:
        CheckpointError: a file is damaged.
    """
    if (folder / RECORD).is_file():
        found = read_new_tokens(folder, CheckpointError)
    else:
        stated = added_tokens(folder, CheckpointError).values()
        rules = ("special", "lstrip", "rstrip", "single_word", "normalized")
        found = tuple(
            NewToken(one.content, one.id, (), **{rule: getattr(one, rule) for rule in rules}) for one in stated
        )
    return tuple(sorted(found, key=lambda token: token.id))
