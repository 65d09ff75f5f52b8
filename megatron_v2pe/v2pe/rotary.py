"""From position ticks to rotary angles, and their application.

Angles are formed in float64 from exact ticks and only then turned into float32 cosines and sines, which are never
rounded to bf16: at position one million a float32 angle would be off by 0.07 rad. V2PE uses plain RoPE at every length;
ordinary positions use the scaling the checkpoint names, decided once per document from its true length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_v2pe.errors import ConfigError

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
    """Ticks to cosines and sines. Holds no parameters; inverse frequencies are `base^(-2 i / head_dim)`."""

    def __init__(self, head_dim: int, base: float, denominator: int, scaling: RopeScaling | None = None) -> None:
        """Remember the geometry.

        Args:
            head_dim: width of an attention head, even.
            base: `rope_theta`.
            denominator: of the position lattice.
            scaling: none by default.
        """
        if head_dim % 2:
            raise ConfigError(f"rotary embedding needs an even head width, got {head_dim}")
        self.head_dim = head_dim
        self.base = base
        self.denominator = denominator
        self.scaling = scaling or RopeScaling()

    def scaled_base(self, length: float) -> float:
        """Base for a document of L positions: beyond max, `base * (factor L / max - (factor - 1))^(d / (d - 2))`."""
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
        self, ticks: Tensor, seqlens: Sequence[int] | None = None, scaling_length: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute cosines and sines for a pack.

        Args:
            ticks: int64 [S].
            seqlens: document lengths summing to S; dynamic scaling is decided for each. One document by default.
            scaling_length: decides the scaling of every document instead of its own length (generation: the prompt's).

        Returns:
            float32 [S, head_dim // 2] twice.
        """
        half = self.head_dim // 2
        cos = torch.empty(ticks.shape[0], half, dtype=torch.float32, device=ticks.device)
        sin = torch.empty_like(cos)
        start = 0
        for document in ticks.split(list(seqlens)) if self.scaling.kind == "dynamic" and seqlens else [ticks]:
            frequencies = self._frequencies(document, scaling_length)
            for part in document.split(_CHUNK):
                angles = part.to(torch.float64).unsqueeze(1) * frequencies
                torch.cos(angles, out=(wide := torch.empty_like(angles)))
                cos[start : start + len(part)] = wide
                torch.sin(angles, out=wide)
                sin[start : start + len(part)] = wide
                start += len(part)
        return cos, sin

    def _frequencies(self, document: Tensor, scaling_length: float | None) -> Tensor:
        """Angle per tick, float64 [head_dim // 2]."""
        base, divisor = self.base, float(self.denominator)
        if self.scaling.kind == "dynamic" and len(document):
            length = scaling_length if scaling_length is not None else int(document.max()) / self.denominator + 1
            base = self.scaled_base(length)
        elif self.scaling.kind == "linear":
            divisor *= self.scaling.factor
        return self.inverse_frequencies(base, document.device) / divisor


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys: first and second half of a head form the pairs (not neighbours).

    Args:
        states: [S, heads, head_dim]; the product is formed in float32 or wider and cast back.
        cos: float32 [S, head_dim // 2].
        sin: float32 [S, head_dim // 2].

    Returns:
        [S, heads, head_dim] in the type of `states`.
    """
    first, second = states.to(torch.promote_types(states.dtype, cos.dtype)).chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)
