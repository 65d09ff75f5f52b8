"""A checksum inside of a JSON object, under `check`: what has changed since it was written is noticed.

It is the XXH3-64 of the object's other fields as JSON with sorted names and no spaces, in 16 hexadecimal digits. It
shows damage, not malice: who can write the file can write its checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable

CHECK = "check"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of plain JSON values with its checksum as last field."""
    return {**content, CHECK: checksum(content)}


def unseal(content: Mapping[str, Any], source: str, error: Kind) -> dict[str, Any]:
    """Return an object without its checksum, which is verified where there is one: older versions wrote none.

    Args:
        content: of a JSON text.
        source: file, or file and line, for the error.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: it has changed since it was written.
    """
    rest = {name: value for name, value in content.items() if name != CHECK}
    if CHECK in content and content[CHECK] != (found := checksum(rest)):
        stated = printable(content[CHECK])[:20]
        raise error(f"{source}: damaged: changed since it was written (checksum {found}, {stated} then)")
    return rest


def checksum(content: Mapping[str, Any]) -> str:
    """Return the checksum of an object of plain JSON values."""
    return xxhash.xxh3_64_hexdigest(_plain(content))


def one_bit_away(content: Mapping[str, Any], name: str) -> bool:
    """Return whether one flipped bit, in the text of a field or in the checksum, explains why the two do not match.

    Args:
        content: with its checksum.
        name: of a field that is a text; it is tried bit by bit, so it should be short.
    """
    rest = {other: value for other, value in content.items() if other != CHECK}
    stated = str(content[CHECK]).encode()
    if _bits_apart(stated, checksum(rest).encode()) == 1:
        return True
    before, behind = _plain({**rest, name: _MARK}).split(json.dumps(_MARK).encode())
    text = bytearray(_plain(rest[name]))
    for place in range(1, len(text) - 1):
        for bit in range(8):
            text[place] ^= 1 << bit
            if xxhash.xxh3_64_hexdigest(before + text + behind).encode() == stated:
                return True
            text[place] ^= 1 << bit
    return False


_MARK = "\0 one bit away \0"


def _bits_apart(first: bytes, second: bytes) -> int:
    """Return in how many bits two texts differ; many where their lengths do."""
    if len(first) != len(second):
        return 8 * max(len(first), len(second))
    return sum((one ^ other).bit_count() for one, other in zip(first, second, strict=True))


def _plain(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")
