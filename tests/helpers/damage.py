"""Damage done to files on purpose, the same for the same seed: what disks, copies and people do to them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_v2pe.errors import V2PEError

SEED = int(os.environ.get("BREAKAGE_SEED", "14"))
"""Seed of all suites of tests/breakage; `scripts/check_breakage.py` runs them with others."""
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, draw: random.Random) -> None:
    """Flip one bit of a file that is not empty."""
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """Take bytes off the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))] if content else b"")


def extend(path: Path, draw: random.Random) -> None:
    """Add bytes to the end of a file."""
    with path.open("ab") as stream:
        stream.write(draw.randbytes(draw.randint(1, 64)))


def empty(path: Path, draw: random.Random) -> None:
    """Leave nothing of a file but its name, as a crash of a machine can."""
    path.write_bytes(b"")


def zeros(path: Path, draw: random.Random) -> None:
    """Turn a part of a file into zeros, as a lost block of a disk is."""
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content)) if content else 0
    length = min(draw.choice((1, 16, 512, 4096)), len(content) - begin)
    content[begin : begin + length] = bytes(length)
    path.write_bytes(content)


def remove(path: Path, draw: random.Random) -> None:
    """Remove a file."""
    path.unlink()


def swap(path: Path, draw: random.Random) -> None:
    """Exchange a file with another of its folder."""
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other != path]
    if others:
        other = draw.choice(others)
        aside = path.with_name(".aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)


KINDS: dict[str, Damage] = {
    "flip": flip,
    "cut": cut,
    "extend": extend,
    "empty": empty,
    "zeros": zeros,
    "remove": remove,
    "swap": swap,
}


def damaged_copies(
    folder: Path, root: Path, seed: int, flips: int = 2, only: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, str, Path]]:
    """Yield every file of a folder with every kind of damage: its name, the kind, a damaged copy of the folder.

    The copy is removed when the next one is asked for.

    Args:
        folder: to copy; not changed.
        root: where copies are made.
        seed: of where damage is done.
        flips: of bits of each file, each in a copy of its own.
        only: chooses among the files by their names relative to the folder.
    """
    draw = random.Random(seed)
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    for name in filter(only, files):
        for kind in (*["flip"] * flips, *list(KINDS)[1:]):
            copy = root / "damaged" / folder.name
            shutil.rmtree(copy.parent, ignore_errors=True)
            shutil.copytree(folder, copy)
            before = {path: path.read_bytes() for path in copy.parent.rglob("*") if path.is_file()}
            KINDS[kind](copy / name, draw)
            after = {path: path.read_bytes() for path in copy.parent.rglob("*") if path.is_file()}
            if before != after:
                yield name, kind, copy
    shutil.rmtree(root / "damaged", ignore_errors=True)


def outcome(action: Callable[[], object], right: object) -> str:
    """Return what became of an action on damaged files.

    Returns:
        `right`: it gave the very result of undamaged files; `refused: MESSAGE`: one error a user can mend; `SILENT`: it
        gave another result; `TRACEBACK ...`: any other exception.
    """
    try:
        result = action()
    except V2PEError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}: {error}"
    return "right" if result == right else "SILENT"
