"""A report as headings, paragraphs, tables and pictures, to be written as Markdown or as HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Style = Literal["", "run", "other", "difference"]


@dataclass(frozen=True)
class Entry:
    """A cell of a table."""

    text: str
    marks: str = ""
    """Letters written small behind it."""
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    entries: tuple[Entry, ...]
    style: Style = ""


@dataclass(frozen=True)
class Table:
    """A table; its first `left` columns are text, the others numbers."""

    header: tuple[str, ...]
    lines: tuple[Line, ...]
    left: int = 1


@dataclass(frozen=True)
class ReportPicture:
    """A PNG file beside the report."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Points:
    """A list of sentences, one a point."""

    sentences: tuple[str, ...]


ReportBlock = str | Table | ReportPicture | Points
"""A paragraph, or one of the others."""


@dataclass
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: list[ReportBlock] = field(default_factory=list)
    folded: bool = False
    """Closed until it is asked for, where the form allows it."""


@dataclass
class ReportPage:
    """A report: its title and its sections."""

    title: str
    sections: list[Section] = field(default_factory=list)


def text_line(*texts: str, style: Style = "") -> Line:
    """Return a row of plain texts."""
    return Line(tuple(Entry(text) for text in texts), style)
