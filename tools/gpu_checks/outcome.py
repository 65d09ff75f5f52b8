"""What a part of the check says: rows of a table, and which of its numbers are wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """Rows measured, and what is wrong with them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One measurement each, in words and numbers; columns may differ from row to row."""
    wrong: list[str] = field(default_factory=list)
    """Numbers that are not what they must be, each in a sentence; the check fails if there is one."""
    remarks: list[str] = field(default_factory=list)
    """What was left out here, and why."""

    def add(self, what: str, **numbers: Any) -> None:
        """Note a measurement."""
        self.rows.append({"what": what, **numbers})

    def must(self, holds: bool, sentence: str) -> None:
        """Note as wrong what does not hold."""
        if not holds:
            self.wrong.append(sentence)
