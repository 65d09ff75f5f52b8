"""From position ticks to rotary angles. They are applied in `kernels/rotary.py`.

Angles are formed in float64 from exact ticks and only then turned into float32 cosines and sines, which are never
rounded to bf16: at position one million a float32 angle would be off by 0.07 rad. Which scaling is used is decided by
`models/build.py`; what it computes stands in `v2pe/rope_scaling.py`. A scaling that looks at the length is decided once
per document, from its true length in positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.rope_scaling import NoScaling, RopeScaling

_CHUNK = 65536


class RotaryEmbedding:
    """Turns ticks into cosines and sines. It holds no parameters."""

    def __init__(self, head_dim: int, base: float, denominator: int, scaling: RopeScaling | None = None) -> None:
        """Set the width of the heads, the base and the lattice.

        Args:
            head_dim: width of an attention head, even.
            base: `rope_theta`.
            denominator: ticks of one position; ticks of another denominator are refused.
            scaling: none by default.
        """
        if head_dim % 2:
            raise ConfigError(f"rotary embedding needs an even head width, got {head_dim}")
        self.head_dim = head_dim
        self.base = base
        self.denominator = denominator
        self.scaling = scaling or NoScaling()

    def cos_sin(
        self, ticks: Ticks, seqlens: Sequence[int] | None = None, last_ticks: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines for a pack, or for one rank's part of it.

        Args:
            ticks: of S tokens.
            seqlens: tokens of each document, summing to S; scaling by length is decided for each. One by default.
            last_ticks: largest tick of each whole document, where `ticks` does not show it: on a rank that holds a
                part of it, or for a prompt that has been continued.

        Returns:
            float32 [S, head_dim // 2] twice, multiplied by the scaling's attention factor.

        Raises:
            LayoutError: the ticks are counted by another denominator than this module's; both are printed.
        """
        values, half, factor = ticks.over(self.denominator), self.head_dim // 2, self.scaling.attention_factor
        cos = torch.empty(values.shape[0], half, dtype=torch.float32, device=values.device)
        sin = torch.empty_like(cos)
        start = 0
        for document, frequencies in self._by_frequencies(values, seqlens, last_ticks):
            for part in document.split(_CHUNK):
                angles = part.to(torch.float64).unsqueeze(1) * frequencies
                torch.cos(angles, out=(wide := torch.empty_like(angles)))
                cos[start : start + len(part)] = wide if factor == 1 else wide.mul_(factor)
                torch.sin(angles, out=wide)
                sin[start : start + len(part)] = wide if factor == 1 else wide.mul_(factor)
                start += len(part)
        return cos, sin

    def _by_frequencies(
        self, ticks: Tensor, seqlens: Sequence[int] | None, last_ticks: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens with their angles per tick, float64 [head_dim // 2]: the whole pack, or each document."""
        if not self.scaling.by_length:
            yield ticks, self._by_tick(0.0, ticks.device)
            return
        documents = ticks.split(list(seqlens)) if seqlens is not None else (ticks,)
        lasts = last_ticks if last_ticks is not None else [int(part.max()) if len(part) else 0 for part in documents]
        for document, last in zip(documents, lasts, strict=True):
            yield document, self._by_tick(last / self.denominator + 1, ticks.device)

    def _by_tick(self, length: float, device: torch.device) -> Tensor:
        """Return angles per tick for a document of so many positions, float64 [head_dim // 2]."""
        return self.scaling.frequencies(self.head_dim, self.base, length, device) / self.denominator
