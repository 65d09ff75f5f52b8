"""Packs planned from lengths alone, before anything is read: for data whose documents have been counted.

Documents are never cut. A window of them, or a whole epoch, is packed with the largest first (`first_fit.py`); the
packs of a window then stand in the order in which their first documents arrived, so that their place says nothing of
their size. A window depends on nothing outside of it: windows may be planned in any order, or when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_v2pe.data.packing.first_fit import fill_packs
from megatron_v2pe.errors import ConfigError, DataError

LARGEST = 1 << 31
"""The largest budget: products of two budgets are compared in int64."""


@dataclass(frozen=True)
class PackBudgets:
    """The most that a pack holds: tokens, tiles and padding."""

    max_tokens: int
    """Tokens of all documents, without padding."""
    max_tiles: int
    """Tiles of all images."""
    padding_multiple: int = 1
    """Tokens every document is padded to a multiple of by the layout."""
    max_padding_share: float = 1.0
    """Padding of a pack of several documents, at most this share of `max_tokens`."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: a budget or the multiple is below 1 or above 2**31, or the share is outside of 0 to 1.
        """
        for name in ("max_tokens", "max_tiles", "padding_multiple"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ConfigError(f"{name} {getattr(self, name)} is not between 1 and {LARGEST}")
        if not 0 <= self.max_padding_share <= 1:
            raise ConfigError(f"max_padding_share {self.max_padding_share} is not between 0 and 1")

    @property
    def max_padding(self) -> int:
        """Padding tokens of a pack of several documents."""
        return int(self.max_padding_share * self.max_tokens)


@dataclass(frozen=True, eq=False)
class PackTable:
    """Which documents make up each pack, as two arrays."""

    documents: np.ndarray
    """int64 [documents]: indices into the planned lengths, pack after pack; within a pack ascending."""
    starts: np.ndarray
    """int64 [packs + 1]: pack k is `documents[starts[k]:starts[k + 1]]`; never an empty one."""

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.starts) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        """Return the documents of one pack, int64 [its documents]; a negative number counts from the end.

        Raises:
            IndexError: there is no such pack.
        """
        if not -len(self) <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        pack %= len(self)
        return self.documents[self.starts[pack] : self.starts[pack + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the documents of each pack."""
        return (self[pack] for pack in range(len(self)))

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Return the sum per pack of a value per document, [packs]: tokens, tiles, padding, whatever adds up."""
        if len(self) == 0:
            return np.zeros(0, dtype=values.dtype)
        return np.add.reduceat(values[self.documents], self.starts[:-1])

    def attention_costs(self, tokens: np.ndarray) -> np.ndarray:
        """Return the sum per pack of squared document lengths, int64 [packs]; attention grows in proportion to it."""
        return self.totals(tokens.astype(np.int64) ** 2)


def plan_packs(tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets, window: int | None = None) -> PackTable:
    """Return the packs of an epoch: every document once, no budget exceeded, the same for the same lengths.

    Args:
        tokens: int64 [n], length of each document, in the shuffled order of the epoch.
        tiles: int64 [n], tiles of each document.
        budgets: of a pack.
        window: plan so many documents at a time, each window as `plan_window` plans it; None: all at once.

    Raises:
        ConfigError: `window` is below 1.
        DataError: a document does not fit into a pack, or is none (no token, a negative number of tiles).
    """
    if window is None:
        return plan_window(tokens, tiles, budgets)
    if window < 1:
        raise ConfigError(f"window {window} is below 1")
    _check(tokens, tiles, budgets)
    begins = range(0, max(len(tokens), 1), window)
    tables = [plan_window(tokens[at : at + window], tiles[at : at + window], budgets) for at in begins]
    documents = [table.documents + at for table, at in zip(tables, begins, strict=True)]
    starts = [table.starts[:-1] + at for table, at in zip(tables, begins, strict=True)]
    return PackTable(np.concatenate(documents), np.concatenate([*starts, [len(tokens)]]))


def plan_window(tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets) -> PackTable:
    """Return the packs of some documents; arguments and errors are those of `plan_packs`; indices count from
    the beginning of the window."""
    _check(tokens, tiles, budgets)
    tokens, tiles = tokens.astype(np.int64), tiles.astype(np.int64)
    padding = -tokens % budgets.padding_multiple
    limits = budgets.max_tokens, budgets.max_tiles, budgets.max_padding
    filled = fill_packs(tokens, tiles, padding, *limits)
    _, first = np.unique(filled, return_index=True)
    by_arrival = np.empty(len(first), dtype=np.int64)
    by_arrival[np.argsort(first)] = np.arange(len(first))
    owner = by_arrival[filled]
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(first)), dtype=np.int64)])
    return PackTable(np.argsort(owner, kind="stable"), starts)


def _check(tokens: np.ndarray, tiles: np.ndarray, budgets: PackBudgets) -> None:
    assert tokens.ndim == 1 and tokens.shape == tiles.shape
    for name, values, least, most in (
        ("tokens", tokens, 1, budgets.max_tokens),
        ("tiles", tiles, 0, budgets.max_tiles),
    ):
        wrong = np.flatnonzero((values < least) | (values > most))
        if len(wrong):
            index, value = wrong[0], values[wrong[0]]
            rule = f"a pack holds at most {most}" if value > most else f"it needs at least {least}"
            raise DataError(f"document {index} has {value} {name}, {rule}")
