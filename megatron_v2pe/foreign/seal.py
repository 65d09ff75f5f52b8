"""A checksum inside of a JSON object, under `check`: what has changed since it was written is noticed.

It is the XXH3-64 of the object's other fields as JSON with sorted names and no spaces, in 16 hexadecimal digits. It
tells damage, not malice: whoever can write the file can write its checksum.
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
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
