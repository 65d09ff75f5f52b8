"""How much memory a conversion may take above the interpreter, and what that leaves for each of its buffers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_v2pe.errors import ConfigError

DEFAULT_LIMIT = "2GiB"
LEAST = 64 << 20
_STRETCH, _BLOCK = 64 << 20, 16 << 20
_BUFFERS = 6
_PAGE = 4096
_FIXED = 96 << 20
"""Bytes that do not depend on the limit: tables, descriptions, library code that the first tensor brings in."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def bytes_in(text: str, option: str) -> int:
    """Return the number of bytes a user has written: `2GiB`, `5GB`, `500MB`, `1000000`.

    Raises:
        ConfigError: it is no such number; names the option.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{option} {text!r}: expected a number of bytes such as 5GB, 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Budget:
    """Sizes of a conversion's buffers."""

    limit: int
    """Bytes above the interpreter, at most."""

    def __post_init__(self) -> None:
        """Refuse a limit that no buffer fits in."""
        if self.limit < LEAST:
            raise ConfigError(f"--memory-limit is {self.limit} bytes, expected {LEAST >> 20} MiB or more")

    @property
    def stretch(self) -> int:
        """Bytes of rows that are written to a Megatron checkpoint as one shard; a single row may be longer."""
        return min(_STRETCH, self.limit // 8 & -_PAGE)

    @property
    def block(self) -> int:
        """Bytes of an HF tensor that are handled together."""
        return min(_BLOCK, self.limit // 32 & -_PAGE)

    @property
    def buffers(self) -> int:
        """Blocks in memory at once: one is filled and written while others are looked at."""
        return _BUFFERS

    @property
    def kept(self) -> int:
        """Bytes of a shard that an export keeps in memory: one that was written with this limit, and its archive."""
        return self.stretch + (1 << 20)

    def held(self, largest_row: int) -> int:
        """Return the bytes a conversion holds at most, above the interpreter.

        Args:
            largest_row: bytes of the longest row of any tensor, in the wider of the types that are read and written.
        """
        stretch, block = max(self.stretch, largest_row), max(self.block, largest_row)
        return 2 * stretch + 2 * self.buffers * block + _FIXED
