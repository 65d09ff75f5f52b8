"""The low-rank change of one linear, and how it is cut or put together where two layouts divide a linear differently.

A linear of weight W becomes `W + scaling * up @ down`. Where one layout has one linear for what the other has as
several (`wqkv` against `q_proj`, `k_proj`, `v_proj`):

- from one to several, each gets `down` as it is and its own rows of `up`. Columns of these rows that are zero, while
  they are not in other rows, are left out with their row of `down`: that is how several were put together before.
- from several to one, `down` are put on top of one another and `up` becomes a matrix of blocks, so that the rank is the
  sum of theirs. Where all of them share one `down`, as several cut from one do, it is taken once.

The scaling stays as it is, so that `alpha` follows the rank. Both ways the product is the same to the last bit where
every part has the same scaling; parts of other scalings have theirs multiplied into their block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankChange:
    """What is added to one weight: `scaling * up @ down`."""

    down: Tensor
    """[rank, in], PEFT's `lora_A`."""
    up: Tensor
    """[out, rank], PEFT's `lora_B`."""
    alpha: float
    rank_stabilised: bool = False
    """Whether the scaling is `alpha / sqrt(rank)` (rsLoRA) in place of `alpha / rank`."""

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    @property
    def scaling(self) -> float:
        """The factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def product(self) -> Tensor:
        """Return what is added to the weight, [out, in] in float32 or float64."""
        kind = torch.promote_types(self.down.dtype, torch.float32)
        return (self.up.to(kind) @ self.down.to(kind)) * self.scaling

    def of_rank(self, down: Tensor, up: Tensor) -> LowRankChange:
        """Return a change of other matrices, perhaps of another rank, with this one's scaling."""
        ratio = down.shape[0] / self.rank
        alpha = self.alpha * (math.sqrt(ratio) if self.rank_stabilised else ratio)
        return replace(self, down=down, up=up, alpha=_settled(alpha))


def rows_taken(change: LowRankChange, rows: Tensor) -> LowRankChange | None:
    """Return the change of a linear that has some rows of this one, None where nothing of it is changed.

    Args:
        change: of the linear that holds more rows, or the same in another order.
        rows: int64 [out], for each row of the new linear that of the old one; -1: a row that is not changed.
    """
    up = _rows(change.up, rows)
    rest = torch.ones(change.up.shape[0], dtype=torch.bool)
    rest[rows[rows >= 0]] = False
    unused = ~up.any(0) & change.up[rest].any(0)
    if not unused.any():
        return replace(change, up=up)
    used = ~unused
    return change.of_rank(change.down[used].contiguous(), up[:, used].contiguous()) if used.any() else None


def put_together(parts: Sequence[tuple[LowRankChange, Tensor]]) -> LowRankChange:
    """Return the change of one linear that holds the rows of several.

    Args:
        parts: each change with, for each row of the new linear, the row of the part or -1.
    """
    first = parts[0][0]
    if all(part.scaling == first.scaling and torch.equal(part.down, first.down) for part, _ in parts):
        up = _rows(first.up, parts[0][1])
        for part, rows in parts[1:]:
            up += _rows(part.up, rows)
        return replace(first, up=up)
    ups = []
    for part, rows in parts:
        up = _rows(part.up, rows)
        ups.append(up if part.scaling == first.scaling else up * (part.scaling / first.scaling))
    return first.of_rank(torch.cat([part.down for part, _ in parts]), torch.cat(ups, 1))


def _settled(alpha: float) -> float:
    """Return the short decimal number that rounding alone has moved alpha away from, or alpha where there is none."""
    short = round(alpha, 6)
    return short if abs(alpha - short) <= 4 * math.ulp(alpha) else alpha


def _rows(up: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix as a new one; those of number -1 are zero."""
    taken = up[rows.clamp(min=0)]
    taken[rows < 0] = 0
    return taken
