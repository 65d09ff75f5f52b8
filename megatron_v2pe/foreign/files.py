"""Files from outside: only regular ones, never larger than what they may be, no links that leave their folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from megatron_v2pe.errors import V2PEError
from megatron_v2pe.foreign.printable import printable

Path_ = str | os.PathLike[str]
Kind = type[V2PEError]
LARGEST_TEXT = 1 << 28
"""Bytes of a text file that is read as a whole, at most: 256 MiB."""
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that git has put in place of a large one."""
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def check_regular(path: Path_, error: Kind) -> int:
    """Check that a path is a regular file, or a link to one; return its size in bytes.

    A pipe would be waited for without end, a device can be read without end.

    Args:
        path: of the file.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: no such file, a folder, a pipe, a device or a socket.
    """
    try:
        found = os.stat(path)
    except OSError as problem:
        raise error(f"{printable(path)}: cannot be read: {problem.strerror}") from problem
    except ValueError as problem:  # a NUL character in the name
        raise error(f"{printable(path)}: not a file name: {problem}") from problem
    if stat.S_ISDIR(found.st_mode):
        raise error(f"{printable(path)}: a folder, expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{printable(path)}: {_KINDS.get(stat.S_IFMT(found.st_mode), 'special')}, expected a regular file")
    return found.st_size


def read_bytes(path: Path_, error: Kind, limit: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        V2PEError: of class `error`: it is no regular file, is too large, or cannot be read.
    """
    size = check_regular(path, error)
    if size > limit:
        raise error(f"{printable(path)}: {size} bytes, at most {limit} are read")
    try:
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except OSError as problem:
        raise error(f"{printable(path)}: cannot be read: {problem.strerror}") from problem
    if len(content) > limit:  # it grew, or its file system does not state sizes
        raise error(f"{printable(path)}: more than {limit} bytes, which is the most that is read")
    return content


def check_name(name: object, source: str, error: Kind) -> str:
    """Check that a name stays in its folder: no separator, not `.` or `..`, no control character; return it.

    Raises:
        V2PEError: of class `error`: it is no such name.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
    if not isinstance(name, str) or not plain or len(os.fsencode(_encodable(name))) > 255 or printable(name) != name:
        raise error(f"{source}: refused: {printable(name)[:80]!r} is no plain file name")
    return name


def check_links(folder: Path, error: Kind) -> None:
    """Refuse links that lead out of a folder: what they name is not part of it, and would be copied along.

    The cache of the Hugging Face hub is built of links, `snapshots/REVISION/NAME` -> `blobs/HASH`: these are followed.

    Raises:
        V2PEError: of class `error`: a link leads elsewhere, or nowhere; names the link and where it leads.
    """
    homes = [Path(os.path.realpath(folder))]
    if homes[0].parent.name == "snapshots" and (homes[0].parents[1] / "blobs").is_dir():
        homes.append(homes[0].parents[1] / "blobs")
    for link in _links(folder):
        target = Path(os.path.realpath(link))
        if not any(target.is_relative_to(home) for home in homes):
            raise error(f"{printable(link)}: refused: a link that leaves {printable(folder)}, to {printable(target)}")
        if not target.exists():
            raise error(
                f"{printable(link)}: a link to {printable(target)}, which does not exist; where it was downloaded, the "
                "same download goes on"
            )


def _links(folder: Path) -> Iterator[str]:
    """Yield the links in a folder and in the folders below it; links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if os.path.islink(path := os.path.join(parent, name)):
                yield path


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
