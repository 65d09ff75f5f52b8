"""A part's rows as aligned text: one line a measurement, what is wrong below."""

from __future__ import annotations

from typing import Any


def as_text(title: str, part: dict[str, Any]) -> list[str]:
    """Return the lines of one part.

    Args:
        title: what it is.
        part: fields of an `Outcome`, and `seconds`.
    """
    lines = ["", f"{title} ({part['seconds']:.0f} s)"]
    width = max((len(row["what"]) for row in part["rows"]), default=0)
    for row in part["rows"]:
        numbers = ", ".join(f"{name} {number(value)}" for name, value in row.items() if name != "what")
        lines.append(f"  {row['what']:<{width}}  {numbers}")
    lines += [f"  note: {remark}" for remark in part["remarks"]]
    lines += [f"  WRONG: {sentence}" for sentence in part["wrong"]]
    return lines


def number(value: Any) -> str:
    """Return a value as the table shows it: four digits that count, powers of ten where small."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
