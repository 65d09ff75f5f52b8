"""Which stride an image gets: none (ordinary positions), one for all, or one drawn per image.

Draws depend on (seed, epoch, sample, image) alone, not on workers, ranks or the order in which samples are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from megatron_v2pe.base.keyed_random import uniform
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.v2pe.position_ids import Stride, smallest_denominator

_PURPOSE = "v2pe stride"
VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
PUBLISHED_STRIDES: tuple[Stride, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""What the published `v2pe_rnd` runs draw from."""
_USUAL_SHARE = 4
LARGEST_STRIDE = 1 << 16
"""Positions a tile may span, at most, and the largest denominator of a stride. Published are 1 to 256."""
LARGEST_DENOMINATOR = 1 << 24
"""Of all strides of a run together. Positions are 64-bit numbers of ticks, and a position has so many of them."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,12}(?:/[0-9]{1,12})?|[0-9]{0,12}\.?[0-9]{1,20}(?:[eE][+-]?[0-9]{1,2})?)")


@dataclass(frozen=True)
class StridePolicy:
    """Version, stride and seed as one object; an inconsistent combination cannot be made."""

    version: str
    """`default`, `v2pe_fix` or `v2pe_rnd`."""
    stride: Stride | None = None
    """Positions one tile spans under `v2pe_fix`."""
    strides: tuple[Stride, ...] = PUBLISHED_STRIDES
    """What `v2pe_rnd` draws from, each as likely as the others."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        """Check the combination.

        Raises:
            ConfigError: unknown version, stride missing, not positive or too large, nothing to draw from, or strides
                whose common denominator is too large.
        """
        if self.version not in VERSIONS:
            shown = printable(self.version)[:80]
            raise ConfigError(f"rope_pos_id_version {shown!r} is none of {', '.join(VERSIONS)}")
        if self.version == "v2pe_fix" and self.stride is None:
            raise ConfigError("rope_pos_id_version v2pe_fix needs rope_pos_id_stride, for example 64")
        if not self.strides:
            raise ConfigError("v2pe_rnd has no strides to draw from")
        for stride in (*self.strides, *(() if self.stride is None else (self.stride,))):
            _check_range(stride, stride)
        if (common := lcm(*(Fraction(stride).denominator for stride in self.strides))) > LARGEST_DENOMINATOR:
            raise ConfigError(
                f"strides: their common denominator is {common}, at most {LARGEST_DENOMINATOR} can be kept"
            )

    def denominator(self, tokens_per_tile: int) -> int:
        """Return the denominator on whose lattice every stride of this policy lies: one for a whole run."""
        return smallest_denominator(self._possible(tokens_per_tile), tokens_per_tile)

    def draw(self, num_images: int, tokens_per_tile: int, *, epoch: int, sample: int) -> list[Stride]:
        """Return the strides of one sample's images.

        Args:
            num_images: images of the sample.
            tokens_per_tile: image tokens per tile.
            epoch: pass over the data.
            sample: the sample's number, unique in the run.
        """
        possible = self._possible(tokens_per_tile)
        if len(possible) == 1:
            return [possible[0]] * num_images
        return [
            possible[uniform(len(possible), self.seed, epoch, sample, image, purpose=_PURPOSE)]
            for image in range(num_images)
        ]

    def _possible(self, tokens_per_tile: int) -> tuple[Stride, ...]:
        if self.version == "default":
            return (tokens_per_tile,)
        if self.version == "v2pe_fix":
            assert self.stride is not None
            return (self.stride,)
        return self.strides


def usual_stride(tokens_per_tile: int) -> int:
    """Return the stride checkpoints of `v2pe_rnd` are asked with unless one is named: 64 of InternVL2's 256 tokens."""
    return max(1, tokens_per_tile // _USUAL_SHARE)


def parse_stride(value: object) -> Stride:
    """Read a stride: `64`, `1/2`, `0.5`.

    Raises:
        ConfigError: not a number, not positive, above 65,536, or with a larger denominator.
    """
    try:
        text = str(value).strip() if isinstance(value, (str, int, float, Fraction)) else ""
        if isinstance(value, bool) or len(text) > 40 or not _NUMBER.fullmatch(text):
            raise ValueError
        stride = Fraction(text)
    except (ValueError, ZeroDivisionError):
        shown = "of so many digits" if isinstance(value, int) and abs(value) > 1 << 64 else printable(repr(value)[:60])
        raise ConfigError(f"rope_pos_id_stride {shown} is not a whole number or a fraction like 1/2") from None
    _check_range(stride, value)
    return stride.numerator if stride.denominator == 1 else stride


def _check_range(stride: Stride, written: object) -> None:
    if stride <= 0:
        raise ConfigError(f"rope_pos_id_stride {written} is not positive")
    if stride > LARGEST_STRIDE:
        raise ConfigError(f"rope_pos_id_stride {written} is above {LARGEST_STRIDE}")
    if Fraction(stride).denominator > LARGEST_STRIDE:
        raise ConfigError(
            f"rope_pos_id_stride {written}: its denominator {Fraction(stride).denominator} is above {LARGEST_STRIDE}; "
            "write it as a fraction such as 1/3"
        )
