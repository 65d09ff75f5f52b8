"""From position ticks to rotary angles. They are applied in `kernels/rotary.py`.

Angles are formed in float64 from exact ticks and only then turned into float32 cosines and sines, which are never
rounded to bf16: at position one million a float32 angle would be off by 0.07 rad. V2PE uses plain RoPE at every length;
ordinary positions use the scaling the checkpoint names, decided once per document from its true length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.position_ids import Ticks

_CHUNK = 65536


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles change beyond the trained length."""

    kind: str = "none"
    """`none`, `dynamic` (NTK-aware base from the length) or `linear` (positions divided by the factor)."""
    factor: float = 1.0
    max_position_embeddings: int = 0
    """Length up to which `dynamic` changes nothing."""

    def __post_init__(self) -> None:
        """Check the combination."""
        if self.kind not in ("none", "dynamic", "linear"):
            raise ConfigError(f"rotary scaling {self.kind!r} is none of none, dynamic, linear")
        if self.kind != "none" and self.factor < 1:
            raise ConfigError(f"rotary scaling factor {self.factor} is below 1")
        if self.kind == "dynamic" and self.max_position_embeddings < 1:
            raise ConfigError(
                f"dynamic rotary scaling needs max_position_embeddings, it is {self.max_position_embeddings}"
            )


class RotaryEmbedding:
    """Turns ticks into cosines and sines. It holds no parameters; inverse frequencies are `base^(-2 i / head_dim)`."""

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
        self.scaling = scaling or RopeScaling()

    def scaled_base(self, length: float) -> float:
        """Return the base for a document of L positions.

        Beyond the trained length it is `base * (factor L / max - (factor - 1))^(d / (d - 2))`.
        """
        scaling = self.scaling
        if scaling.kind != "dynamic" or length <= scaling.max_position_embeddings:
            return self.base
        stretch = scaling.factor * length / scaling.max_position_embeddings - (scaling.factor - 1)
        return self.base * stretch ** (self.head_dim / (self.head_dim - 2))

    def inverse_frequencies(self, base: float, device: torch.device | None = None) -> Tensor:
        """Return float64 [head_dim // 2]."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device) / self.head_dim
        return 1.0 / base**exponents

    def cos_sin(
        self, ticks: Ticks, seqlens: Sequence[int] | None = None, last_ticks: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines for a pack, or for one rank's part of it.

        Args:
            ticks: of S tokens.
            seqlens: tokens of each document, summing to S; dynamic scaling is decided for each. One by default.
            last_ticks: largest tick of each whole document, where `ticks` does not show it: on a rank that holds a
                part of it, or for a prompt that has been continued.

        Returns:
            float32 [S, head_dim // 2] twice.

        Raises:
            LayoutError: the ticks are counted by another denominator than this module's; both are printed.
        """
        values, half = ticks.over(self.denominator), self.head_dim // 2
        cos = torch.empty(values.shape[0], half, dtype=torch.float32, device=values.device)
        sin = torch.empty_like(cos)
        start = 0
        for document, frequencies in self._by_frequencies(values, seqlens, last_ticks):
            for part in document.split(_CHUNK):
                angles = part.to(torch.float64).unsqueeze(1) * frequencies
                torch.cos(angles, out=(wide := torch.empty_like(angles)))
                cos[start : start + len(part)] = wide
                torch.sin(angles, out=wide)
                sin[start : start + len(part)] = wide
                start += len(part)
        return cos, sin

    def _by_frequencies(
        self, ticks: Tensor, seqlens: Sequence[int] | None, last_ticks: Sequence[int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens with their angles per tick, float64 [head_dim // 2]: the whole pack, or each document."""
        if self.scaling.kind != "dynamic":
            divisor = self.denominator * (self.scaling.factor if self.scaling.kind == "linear" else 1.0)
            yield ticks, self.inverse_frequencies(self.base, ticks.device) / divisor
            return
        documents = ticks.split(list(seqlens)) if seqlens is not None else (ticks,)
        lasts = last_ticks if last_ticks is not None else [int(part.max()) if len(part) else 0 for part in documents]
        for document, last in zip(documents, lasts, strict=True):
            base = self.scaled_base(last / self.denominator + 1)
            yield document, self.inverse_frequencies(base, ticks.device) / self.denominator
