"""Numbers as tables print them: half up, as people round and as the published averages were rounded."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal


def rounded(value: float | Decimal, digits: int = 1, signed: bool = False) -> str:
    """Return a number with so many decimals; a mean like 20.95 counts as the decimal it stands for, not as its float.

    Args:
        value: of a score or a difference.
        digits: decimals, at most 8.
        signed: whether a plus is written.
    """
    exact = value if isinstance(value, Decimal) else Decimal(repr(round(value, 9)))
    return format(exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP) + 0, "+f" if signed else "f")
