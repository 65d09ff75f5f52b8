"""Which linears of a model get LoRA, of which rank, and in which pieces: plain data, known before anything is built.

The adapters themselves are in `lora.py`, which brings PyTorch and Megatron-Core; a dry run needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from megatron_v2pe.foreign.schema import Range

if TYPE_CHECKING:
    from torch import Tensor

_Rows = Annotated[int, Range(0, 1 << 32)]


@dataclass(frozen=True)
class LinearPiece:
    """Output rows of a linear with a pair of factors of their own.

    The rows lie in blocks of equal size, of each of which the piece has the same share: groups of heads in a joint
    projection, or all rows that a rank holds as one block.
    """

    name: str
    """`q`, `k`, `v`, `gate`, `up`, or `whole`."""
    begin: _Rows = 0
    """Where in a block it begins, in units of which a block has `of`."""
    size: _Rows = 1
    """How long it is, in these units."""
    of: _Rows = 1
    block: _Rows | None = None
    """Rows of a block; None: what a rank holds is one block."""

    def rows_of(self, rows: int) -> int:
        """Return how many of a rank's, or of all, rows of the linear are the piece's."""
        return rows * self.size // self.of

    def part(self, rows: Tensor) -> Tensor:
        """Return a view of the piece's part of [n, rows of a rank], [n, blocks, rows of the piece in a block]."""
        block = self.block or rows.shape[1]
        unit = block // self.of
        return rows.unflatten(1, (-1, block))[:, :, self.begin * unit : (self.begin + self.size) * unit]


WHOLE = LinearPiece("whole")
"""All rows of a linear."""


@dataclass(frozen=True)
class LowRank:
    """What the factors of a linear are to be."""

    rank: Annotated[int, Range(1, 1 << 16)]
    alpha: Annotated[float, Range(1e-6, 1e6)]
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Share of the entries of the input that `lora_A` does not see in training."""
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        """Factor of the product of low rank."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True)
class LowRankPlan:
    """Which linears of a whole model get LoRA, and what it is; every rank has the same."""

    pieces: Mapping[str, tuple[LinearPiece, ...]]
    """Name of a linear -> those of its pieces that get factors."""
    settings: Mapping[str, LowRank]
    """Part of the model (`language_model`, `vision_model`, `vision_projection`) -> rank, scaling and dropout."""
    seed: int = 0
    """Seed of the draws of `lora_A`."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model that get any; their own weights do not learn."""
        return tuple(dict.fromkeys(name.split(".")[0] for name in self.pieces))
