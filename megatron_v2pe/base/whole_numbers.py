"""Which texts are whole numbers that a program may read: names of folders, values of variables, answers.

`str.isdigit` holds for `²` as well, which `int` refuses, and `int` refuses numbers of more than 4,300 digits. So what
is asked before a text is read stands here, once.
"""

from __future__ import annotations

LONGEST = 18
"""Digits of the longest number that every program reads as an integer of 64 bits."""


def is_whole_number(text: str, digits: int = LONGEST) -> bool:
    """Return whether a text consists of digits from 0 to 9 alone, at least one and no more than `digits` of them."""
    return text.isascii() and text.isdecimal() and len(text) <= digits
