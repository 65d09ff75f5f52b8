"""Draws of one sample: keyed by seed and sample, never by the order or the process in which samples are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from megatron_v2pe.base.keyed_random import seed_of, uniform
from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import ConfigError

_PURPOSE = "long context"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Draws:
    """Random choices of one sample, each named by what it is for."""

    seed: int
    sample: int

    def integer(self, choices: int, *what: str | int) -> int:
        """Return an integer in [0, choices)."""
        return uniform(choices, self.seed, self.sample, *what, purpose=_PURPOSE)

    def fraction(self, *what: str | int) -> float:
        """Return a number in [0, 1)."""
        return self.integer(1 << 32, *what) / (1 << 32)

    def order(self, length: int, *what: str | int) -> list[int]:
        """Return the numbers below `length`, shuffled."""
        seed = seed_of(self.seed, self.sample, *what, purpose=_PURPOSE)
        return np.random.default_rng(seed).permutation(length).tolist()

    def choose(self, items: Sequence[Item], *what: str | int) -> Item:
        """Return one of the items."""
        return items[self.integer(len(items), *what)]


@dataclass(frozen=True)
class TokenRange:
    """Lengths asked for, in tokens; both ends may be drawn."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> TokenRange:
        """Read `32768` or `16384:32768`.

        Raises:
            ConfigError: something else.
        """
        parts = text.split(":")
        if len(parts) > 2 or not all(is_whole_number(part) for part in parts):
            raise ConfigError(f"target tokens {text!r}: expected a number (32768) or a range (16384:32768)")
        low, high = int(parts[0]), int(parts[-1])
        if not 1 <= low <= high:
            raise ConfigError(f"target tokens {text!r}: expected 1 or more, the smaller number first")
        return cls(low, high)

    def draw(self, draws: Draws) -> int:
        """Return the length one sample is to have."""
        return self.low + draws.integer(self.high - self.low + 1, "target")
