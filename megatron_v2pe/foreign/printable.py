"""Text from outside as a terminal or a log may show it: control characters are spelt out, never sent."""

from __future__ import annotations

import os
import re

# C0 and C1 control characters but tab and line feed, the marks that change the direction of text, half surrogate pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, lines: bool = False) -> str:
    """Return text without anything that moves a cursor, sets a colour or hides other text.

    Args:
        text: a string, a path, or what `str` makes one of.
        lines: keep line feeds and tabs; by default they are spelt out too, for names and for messages of one line.

    Returns:
        The same text, every such character as `\\x1b` or `\\u202e`.
    """
    shown = os.fspath(text) if isinstance(text, os.PathLike) else text
    shown = shown if isinstance(shown, str) else str(shown)
    shown = _UNSAFE.sub(_spelt, shown)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def _spelt(match: re.Match[str]) -> str:
    number = ord(match[0])
    if match[0] == "\r":
        return "\\r"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
