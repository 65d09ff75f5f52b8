"""What a part of the check says: rows of a table, and which of its numbers are wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_v2pe.base.whole_files import write_text


@dataclass
class Outcome:
    """Rows measured, and what is wrong with them."""

    target: ClassVar[Path | None] = None
    """Where everything is written as it is noted: a part that is ended loses nothing it has measured."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One measurement each, in words and numbers; columns may differ from row to row."""
    wrong: list[str] = field(default_factory=list)
    """Numbers that are not what they must be, each in a sentence; the check fails if there is one."""
    remarks: list[str] = field(default_factory=list)
    """What was left out here, and why."""

    def add(self, what: str, **numbers: Any) -> None:
        """Note a measurement."""
        self.rows.append({"what": what, **numbers})
        self.keep()

    def must(self, holds: bool, sentence: str) -> None:
        """Note as wrong what does not hold."""
        if not holds:
            self.wrong.append(sentence)
            self.keep()

    def keep(self) -> None:
        """Write what there is."""
        if Outcome.target is not None:
            write_text(Outcome.target, json.dumps(asdict(self)))
