"""Random draws for entries of [tokens, columns] that depend on a key alone: not on ranks, order or recompute.

Dropout on a token's states has to fall the same whoever holds the token. An entry is kept or dropped by a hash of the
seed, the pack, the layer's name, the token's place in the whole pack and the column in the whole width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.base.keyed_random import seed_of

_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class TokenDraws:
    """Names the draws of the rows of a linear's input in one micro-batch."""

    seed: int
    pack: int
    """Number of the pack in the run's order: the same whatever the parallel layout."""
    tokens: Tensor
    """int64 [n]: place of each row in the whole pack, or among all its tiles' tokens in the tower."""

    def keep(self, name: str, rows: slice, columns: range, rate: float) -> Tensor:
        """Tell which entries are kept, each with probability `1 - rate`.

        Args:
            name: of the layer, the same on all ranks.
            rows: of the input, those to draw for.
            columns: which of the whole width they have.
            rate: share of entries that are dropped.

        Returns:
            bool [rows, columns].
        """
        seed = seed_of(self.seed, self.pack, name, purpose="token draws")
        tokens = self.tokens[rows]
        places = torch.arange(columns.start, columns.stop, device=tokens.device)
        of_row = _mixed((tokens & _MASK) ^ (seed & _MASK))
        of_column = _mixed(places ^ (seed >> 32))
        return _mixed(of_row[:, None] ^ of_column) >= round(rate * (_MASK + 1))


def _mixed(values: Tensor) -> Tensor:
    """Return a bijective hash of 32 bits, each bit of which depends on all (constants of C. Wellons' hash prospector).

    Values are int64 in [0, 2^32), and so are products below 2^63.
    """
    values = values ^ (values >> 16)
    values = (values * 0x21F0AAAD) & _MASK
    values = values ^ (values >> 15)
    values = (values * 0x735A2D97) & _MASK
    return values ^ (values >> 15)
