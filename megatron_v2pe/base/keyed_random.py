"""Random numbers that depend on a key alone, never on the order of draws, workers or ranks."""

from __future__ import annotations

import hashlib


def uniform(choices: int, *key: int | str, purpose: str) -> int:
    """Return a uniform integer in [0, choices); it is made of 128 bits, so that its bias is negligible.

    Args:
        choices: how many values are possible.
        key: what the draw belongs to, for example seed, epoch, sample, image.
        purpose: keeps draws of different kinds apart, at most 16 ASCII characters.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16, person=purpose.encode()).digest()
    return int.from_bytes(digest, "little") % choices


def seed_of(*key: int | str, purpose: str) -> int:
    """Return a 63-bit seed for a generator."""
    return uniform(1 << 63, *key, purpose=purpose)
