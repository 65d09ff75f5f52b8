"""Digests that an HF folder carries without saying so: the cache of the hub names its files after their content.

`snapshots/REVISION/NAME` is a link to `blobs/HEX`, where HEX is the SHA-256 of a large file and Git's SHA-1 of a small
one. A file `NAME.sha256` beside a weight file, as `sha256sum` writes it, is read as well.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import read_text

_SHA256, _GIT = 64, 40
_BLOCK = 1 << 22


def known_digests(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of an HF folder whose digest is known, and the digest.

    Raises:
        CheckpointError: a `.sha256` file that cannot be read or holds no digest.
    """
    for path in sorted(folder.rglob("*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]+", target.name):
            if len(target.name) in (_SHA256, _GIT) and target.is_file():
                yield path, target.name
        elif path.suffix == ".sha256" and path.with_suffix("").is_file():
            words = read_text(path, CheckpointError, 1 << 12).split()
            if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
                raise CheckpointError(f"{printable(path)}: found no SHA-256, expected 64 hexadecimal digits")
            yield path.with_suffix(""), words[0].lower()


def check_digest(path: Path, expected: str) -> None:
    """Compare a file with its digest, SHA-256 or Git's SHA-1 by length.

    Raises:
        CheckpointError: its content is another; names both digests.
    """
    size = check_regular(path, CheckpointError)
    digest = hashlib.sha256() if len(expected) == _SHA256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    if (found := digest.hexdigest()) != expected:
        raise CheckpointError(
            f"{printable(path)}: damaged: its content has the digest {found}, it was published as {expected}; "
            "download it again"
        )
