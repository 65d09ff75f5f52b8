"""Damaging folders on purpose: every file of a copy, one change at a time. For tests."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
"""Of all suites of tests/breakage; `scripts/check_breakage.py` runs them with others."""
Damage = Callable[[Path], None]
"""Damages a folder."""


def damages(folder: Path, seed: int, flips: int = 5, swaps: int = 10) -> Iterator[tuple[str, Sequence[str], Damage]]:
    """Yield kinds of damage to a folder: what it is, the files it changes, and a function that does it to a copy.

    Args:
        folder: whose files are looked at; it is not touched.
        seed: of all draws.
        flips: single flipped bits of every file.
        swaps: pairs of files that take each other's names.
    """
    draws = random.Random(seed)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".lock"))
    for name in names:
        size = (folder / name).stat().st_size
        for bit in draws.sample(range(8 * size), min(flips, 8 * size)):
            yield f"bit {bit} of {name} flipped", [name], _flip(name, bit)
        for length in {0, draws.randrange(size), size - 1} if size else ():
            yield f"{name} cut to {length} of {size} bytes", [name], _cut(name, length)
        more = draws.randbytes(draws.randint(1, 50))
        yield f"{name} longer by {len(more)} bytes", [name], _extend(name, more)
        yield f"{name} gone", [name], _remove(name)
    pairs = list(combinations(names, 2))
    for one, other in draws.sample(pairs, min(swaps, len(pairs))):
        yield f"{one} and {other} swapped", [one, other], _swap(one, other)


def damaged_copy(folder: Path, copy: Path, damage: Damage) -> bool:
    """Copy a folder and damage the copy; return whether anything differs."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / ".lock").unlink(missing_ok=True)
    damage(copy)
    return any(
        not (copy / path.name).exists() or (copy / path.name).read_bytes() != path.read_bytes()
        for path in folder.iterdir()
        if path.name != ".lock"
    )


def _flip(name: str, bit: int) -> Damage:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(content)

    return damage


def _cut(name: str, length: int) -> Damage:
    return lambda folder: _write(folder / name, (folder / name).read_bytes()[:length])


def _extend(name: str, more: bytes) -> Damage:
    return lambda folder: _write(folder / name, (folder / name).read_bytes() + more)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _swap(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "swapped")
        (folder / other).rename(folder / one)
        (folder / "swapped").rename(folder / other)

    return damage
