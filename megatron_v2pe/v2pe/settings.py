"""Which stride the tokens of an image get: none (ordinary positions), one for all, or one drawn per image.

`V2PESettings` are what a user sets, what a run saves and what a `config.json` states: one object from the flag to the
rotary embedding. A `StridePolicy` is made from them and gives every image its stride. Draws depend on (seed, epoch,
sample, image) alone, not on workers, ranks or the order in which samples are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Annotated, Any, Literal

from megatron_v2pe.base import config_tree
from megatron_v2pe.base.keyed_random import uniform
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields

Stride = int | Fraction
"""Positions one tile spans: `tokens_per_tile` for ordinary positions, less for V2PE."""
_PURPOSE = "v2pe stride"
VERSIONS = ("default", "v2pe_fix", "v2pe_rnd")
PUBLISHED_STRIDES: tuple[Stride, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""What the published `v2pe_rnd` runs draw from."""
_USUAL_SHARE = 4
LARGEST_STRIDE = 1 << 16
"""Positions a tile may span, at most, and the largest denominator of a stride. Published are 1 to 256."""
LARGEST_DENOMINATOR = 1 << 24
"""Common denominator of all strides of a run, at most. A position is a 64-bit number of ticks of 1 / (that times the
tokens of a tile)."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,12}(?:/[0-9]{1,12})?|[0-9]{0,12}\.?[0-9]{1,20}(?:[eE][+-]?[0-9]{1,2})?)")

_StrideText = Annotated[str, config_tree.NUMBER_OR_TEXT]


@dataclass(frozen=True)
class V2PESettings:
    """How positions advance over image tokens; names and meaning of the published flags."""

    rope_pos_id_version: Literal["default", "v2pe_fix", "v2pe_rnd", "recorded"] = "default"
    """`default`: a position per token; `v2pe_fix`: one stride for all; `v2pe_rnd`: one drawn per image; `recorded`:
    version and strides an indexed data set was built with."""
    rope_pos_id_stride: _StrideText | None = None
    """Positions a tile spans under `v2pe_fix`: a whole number or a fraction, `64`, `1/2`, `0.5`."""
    strides: tuple[_StrideText, ...] = ("1", "2", "4", "8", "16", "32", "64", "128", "256")
    """Strides `v2pe_rnd` draws from, each as likely as the others."""

    @classmethod
    def stated(cls, version: Any, stride: object) -> V2PESettings:
        """Return the settings of a version and a stride from outside, the stride in its shortest form (`1/2`).

        Raises:
            ConfigError: the stride cannot be read, see `parse_stride`; the version is not checked.
        """
        return cls(version, None if stride is None else str(parse_stride(stride)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> V2PESettings:
        """Read a `config.json`; the version may stand at the top or in `llm_config` alone.

        A stride that stands beside version `default` is left over from another run and is dropped.

        Raises:
            ConfigError: the version is unknown, or the stride cannot be read; names `source` and the field.
        """
        top = Fields(config, source, ConfigError)
        places = (top, top.section("llm_config"))
        versions = [section.text("rope_pos_id_version", None, VERSIONS) for section in places]
        version = versions[0] or versions[1] or "default"
        try:
            read = cls.stated(version, config.get("rope_pos_id_stride"))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        return cls() if version == "default" else read

    def written_into(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a `config.json` that states these settings; every other field stays as it is."""
        version, stride = self.rope_pos_id_version, self.stride
        result: dict[str, Any] = {**config, "rope_pos_id_version": version}
        result.pop("rope_pos_id_stride", None)
        if stride is not None:
            result["rope_pos_id_stride"] = _as_json(stride)
        return {**result, "llm_config": {**result["llm_config"], "rope_pos_id_version": version}}

    @property
    def stride(self) -> Stride | None:
        """The one stride as a number, None where none is set.

        Raises:
            ConfigError: it cannot be read.
        """
        return None if self.rope_pos_id_stride is None else parse_stride(self.rope_pos_id_stride)

    @property
    def in_config(self) -> V2PESettings:
        """What a `config.json` can state of these settings: the version and the one stride, in its shortest form."""
        return V2PESettings.stated(self.rope_pos_id_version, self.rope_pos_id_stride)

    def overridden(self, version: str | None, stride: object) -> V2PESettings:
        """Return the settings with what a user asks for; another version than before drops the earlier stride.

        Args:
            version: the version asked for; None keeps the present one.
            stride: the stride asked for; None keeps the present one.

        Raises:
            ConfigError: the stride cannot be read.
        """
        new = version or self.rope_pos_id_version
        kept = self.rope_pos_id_stride if new == self.rope_pos_id_version else None
        return V2PESettings.stated(new, kept if stride is None else stride)

    def validate(self) -> None:
        """Check the settings of a run: that version and strides belong together.

        Raises:
            ConfigError: a stride missing, given where it has no meaning, or not positive.
        """
        config_tree.check_values(self, "v2pe")
        version, stride = self.rope_pos_id_version, self.rope_pos_id_stride
        if version == "v2pe_fix" and stride is None:
            raise ConfigError(
                "v2pe.rope_pos_id_stride is missing: rope_pos_id_version v2pe_fix needs one, for example 64"
            )
        if version != "v2pe_fix" and stride is not None:
            raise ConfigError(
                f"v2pe.rope_pos_id_stride is {stride} but rope_pos_id_version is {version}, which uses none; "
                "use v2pe_fix, or leave the stride out"
            )
        if not self.strides:
            raise ConfigError("v2pe.strides is empty; v2pe_rnd draws from it")
        if version != "recorded":
            self.policy()

    def check_in_config(self) -> None:
        """Check that a `config.json` may state these settings.

        Raises:
            ConfigError: unknown version, `v2pe_fix` without a stride, or a stride with `default`.
        """
        self.policy()
        if self.rope_pos_id_version == "default" and self.stride is not None:
            raise ConfigError(f"rope_pos_id_stride {self.stride} has no meaning with rope_pos_id_version default")

    def policy(self, seed: int = 0) -> StridePolicy:
        """Return the policy that gives every image its stride.

        Args:
            seed: seed of the draws.

        Raises:
            ConfigError: the settings contradict one another, see `StridePolicy`.
        """
        strides = tuple(parse_stride(text) for text in self.strides)
        return StridePolicy(self.rope_pos_id_version, self.stride, strides, seed)


@dataclass(frozen=True)
class StridePolicy:
    """Version, strides and seed as one object; an inconsistent combination cannot be made."""

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


def smallest_denominator(strides: Sequence[Stride], tokens_per_tile: int) -> int:
    """Return `tokens_per_tile` times the least common multiple of the strides' own denominators."""
    common = 1
    for stride in set(strides):
        common = lcm(common, Fraction(stride).denominator)
    return tokens_per_tile * common


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


def _as_json(stride: Stride) -> int | float | str:
    """Return a stride as JSON has it: a number where that is exact, else text such as `1/3`."""
    value = Fraction(stride)
    if value.denominator == 1:
        return value.numerator
    return float(value) if Fraction(str(float(value))) == value else str(value)
