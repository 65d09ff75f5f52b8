"""Rotary scalings: how a model's rotary frequencies differ from the plain ones, one class for each kind.

A plain frequency is `base^(-2 i / d)` for pair i of a head of width d; an angle is frequency times position. The
formulas are those that transformers computes (`ROPE_INIT_FUNCTIONS`), in float64.

| kind | frequencies | factor on cosines and sines | with V2PE positions |
|---|---|---|---|
| `none` | plain | 1 | the same |
| `dynamic` | plain of a larger base, for documents beyond the trained length | 1 | not used, as published |
| `linear` | divided by the factor | 1 | kept |
| `llama3` | slow ones divided by the factor, fast ones plain, between them a mixture | 1 | kept |
| `yarn` | the same idea, with the mixture over pairs in place of wavelengths | from the factor | kept |
| `longrope` | each divided by a number of its own, of two lists by the document's length | from the factor | kept |

A model was trained with its `linear`, `llama3`, `yarn` or `longrope` scaling from some point on, so its weights belong
to the scaled angles, and V2PE changes nothing but the positions. `dynamic` scaling comes in beyond the trained length
alone and stretches what V2PE makes short already; the published V2PE code uses plain angles in its place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from megatron_v2pe.errors import ConfigError


def plain_frequencies(head_dim: int, base: float, device: torch.device | None = None) -> Tensor:
    """Return `base^(-2 i / head_dim)`, float64 [head_dim // 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    return 1.0 / base**exponents


class RopeScaling(ABC):
    """A kind of scaling with its numbers."""

    kind: ClassVar[str]
    """Name of the kind, as transformers spells it."""
    by_length: ClassVar[bool] = False
    """Whether frequencies depend on how long a document is."""
    with_v2pe: ClassVar[bool] = True
    """Whether it is used with V2PE positions too."""

    @property
    def switches_after(self) -> int | None:
        """Positions after which a growing document gets other angles throughout; None: it keeps its first ones."""
        return None

    @property
    def attention_factor(self) -> float:
        """Number by which cosines and sines are multiplied, so that scores are multiplied by its square."""
        return 1.0

    @abstractmethod
    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return radians by position, float64 [head_dim // 2].

        Args:
            head_dim: width of an attention head.
            base: `rope_theta`.
            length: positions of the whole document: the last one plus 1. Looked at by kinds that are `by_length`.
            device: where to put them.
        """


@dataclass(frozen=True)
class NoScaling(RopeScaling):
    """Plain rotary angles."""

    kind: ClassVar[str] = "none"

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the plain frequencies; see `RopeScaling`."""
        return plain_frequencies(head_dim, base, device)


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Positions are divided by the factor."""

    factor: float
    kind: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        """Check the factor."""
        _check_factor(self)

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the plain frequencies over the factor; see `RopeScaling`."""
        return plain_frequencies(head_dim, base, device) / self.factor


@dataclass(frozen=True)
class DynamicScaling(RopeScaling):
    """Dynamic NTK: beyond the trained length the base grows with the document's length."""

    factor: float
    trained_positions: int
    """Length up to which nothing changes."""
    kind: ClassVar[str] = "dynamic"
    by_length: ClassVar[bool] = True
    with_v2pe: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check factor and length."""
        _check_factor(self)
        _check_trained(self)

    def base_at(self, head_dim: int, base: float, length: float) -> float:
        """Return the base for a document of L positions.

        Beyond the trained length it is `base * (factor L / trained - (factor - 1))^(d / (d - 2))`.
        """
        if length <= self.trained_positions:
            return base
        stretch = self.factor * length / self.trained_positions - (self.factor - 1)
        return base * stretch ** (head_dim / (head_dim - 2))

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the plain frequencies of the document's base; see `RopeScaling`."""
        return plain_frequencies(head_dim, self.base_at(head_dim, base, length), device)


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1: a pair is scaled by how many turns it makes over the trained length.

    With `turns = trained / wavelength`, a pair of at most `low_freq_factor` turns is divided by the factor, one of at
    least `high_freq_factor` stays, and between them the two are mixed in proportion.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained_positions: int
    """Length of the pretraining before the scaling (`original_max_position_embeddings`)."""
    kind: ClassVar[str] = "llama3"

    def __post_init__(self) -> None:
        """Check factors and length."""
        _check_factor(self)
        _check_trained(self)
        if not 0 <= self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rotary scaling llama3: low_freq_factor is {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; expected a lower and a higher number, not negative"
            )

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the mixture of plain and divided frequencies; see `RopeScaling`."""
        plain = plain_frequencies(head_dim, base, device)
        turns = plain * (self.trained_positions / (2 * math.pi))
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return _mixed(plain, self.factor, kept.clamp(0, 1))


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN (arXiv 2309.00071): fast pairs stay, slow ones are divided by the factor, between them a ramp over pairs.

    The pair that makes n turns over the trained length is number `d ln(trained / (2 pi n)) / (2 ln base)`. The ramp
    goes from that of `beta_fast` turns to that of `beta_slow`.
    """

    factor: float
    trained_positions: int
    """Length of the pretraining before the scaling (`original_max_position_embeddings`)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether the ends of the ramp are rounded to whole pairs, away from its middle."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """Both stated: the attention factor is the ratio of what it would be with either."""
    stated_attention_factor: float | None = None
    kind: ClassVar[str] = "yarn"

    def __post_init__(self) -> None:
        """Check factors and length."""
        _check_factor(self)
        _check_trained(self)
        if not 1e-6 <= self.beta_slow <= self.beta_fast:
            raise ConfigError(
                f"rotary scaling yarn: beta_slow is {self.beta_slow} and beta_fast {self.beta_fast}; expected a lower "
                "and a higher number of turns, at least 1e-6"
            )

    @property
    def attention_factor(self) -> float:
        """Return the stated one, else `0.1 ln(factor) + 1`."""
        if self.stated_attention_factor is not None:
            return self.stated_attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._weighted(self.mscale) / self._weighted(self.mscale_all_dim)
        return self._weighted(1.0)

    def _weighted(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the mixture of plain and divided frequencies; see `RopeScaling`."""
        first, last = (self._pair(head_dim, base, turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        if first == last:
            last += 0.001  # no division by zero, as transformers does it
        pairs = torch.arange(head_dim // 2, dtype=torch.float64, device=device)
        ramp = ((pairs - first) / (last - first)).clamp(0, 1)
        return _mixed(plain_frequencies(head_dim, base, device), self.factor, 1 - ramp)

    def _pair(self, head_dim: int, base: float, turns: float) -> float:
        """Return which pair makes so many turns over the trained length, a fraction."""
        return head_dim * math.log(self.trained_positions / (turns * 2 * math.pi)) / (2 * math.log(base))


@dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """LongRoPE (arXiv 2402.13753), Phi-3's: every pair has a divisor, of two lists by the document's length.

    Both lists come with the same attention factor, as in Phi-3.
    """

    short_factor: tuple[float, ...]
    """Divisors of documents up to the trained length, [head_dim // 2]."""
    long_factor: tuple[float, ...]
    """Divisors of longer ones, [head_dim // 2]."""
    trained_positions: int
    """Length of the pretraining before the scaling (`original_max_position_embeddings`)."""
    factor: float
    """How much longer the model's positions reach now; 1 or less leaves cosines and sines as they are."""
    stated_attention_factor: float | None = None
    kind: ClassVar[str] = "longrope"
    by_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check lists and length."""
        _check_trained(self, least=2)  # its logarithm divides
        if len(self.short_factor) != len(self.long_factor):
            raise ConfigError(
                f"rotary scaling longrope: short_factor has {len(self.short_factor)} numbers, long_factor "
                f"{len(self.long_factor)}; expected as many"
            )
        if not all(divisor >= 1e-6 for divisor in (*self.short_factor, *self.long_factor)):
            raise ConfigError("rotary scaling longrope: a number of short_factor or long_factor is below 1e-6")

    @property
    def switches_after(self) -> int | None:
        """Return the trained length: beyond it the other list is used."""
        return self.trained_positions

    @property
    def attention_factor(self) -> float:
        """Return the stated one, else `sqrt(1 + ln(factor) / ln(trained))`."""
        if self.stated_attention_factor is not None:
            return self.stated_attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.trained_positions))

    def frequencies(self, head_dim: int, base: float, length: float, device: torch.device | None = None) -> Tensor:
        """Return the plain frequencies over the divisors of the document's length; see `RopeScaling`."""
        divisors = self.long_factor if length > self.trained_positions else self.short_factor
        if len(divisors) != head_dim // 2:
            raise ConfigError(
                f"rotary scaling longrope has {len(divisors)} divisors, heads of width {head_dim} have {head_dim // 2} "
                "pairs"
            )
        return plain_frequencies(head_dim, base, device) / _on_device(divisors, device)


SCALINGS: dict[str, type[RopeScaling]] = {
    cls.kind: cls for cls in (NoScaling, DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling, LongRopeScaling)
}
"""The kinds by their names."""


@cache
def _on_device(numbers: tuple[float, ...], device: torch.device | None) -> Tensor:
    """Return numbers as float64, made once: a copy to a device waits for it."""
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _mixed(plain: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Return the plain frequencies where `kept` is 1, those over the factor where it is 0."""
    return plain * (kept + (1 - kept) / factor)


def _check_factor(scaling: LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling) -> None:
    if scaling.factor < 1:
        raise ConfigError(f"rotary scaling {scaling.kind}: factor {scaling.factor} is below 1")


def _check_trained(scaling: DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling, least: int = 1) -> None:
    if scaling.trained_positions < least:
        raise ConfigError(
            f"rotary scaling {scaling.kind} needs the length that the model was trained for, found "
            f"{scaling.trained_positions}"
        )
