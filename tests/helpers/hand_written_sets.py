"""Files of a benchmark written row by row, and the questions made of them: for tests that look at single prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_v2pe.evaluate.benchmark import Question
from megatron_v2pe.evaluate.benchmark_names import create

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""How published prompts ask for an answer."""


def write_lines(path: Path, *rows: dict[str, Any]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def ask(name: str, root: Path, **settings: Any) -> list[Question]:
    """Return all questions a benchmark makes of the files below `root`."""
    return list(create(name, **settings).questions(root))


def text_of(question: Question) -> str:
    """Return what is asked, in the only turn."""
    ((role, text),) = question.turns
    assert role == "human"
    return text
