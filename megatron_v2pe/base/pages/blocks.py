"""What pages are made of: headings, paragraphs, tables, figures, pictures, passages of text.

A report is written of them as Markdown (`evaluate/report/markdown.py`) and as HTML (`html.py`); the page of a run is
HTML alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_v2pe.base.pages.charts import Bars, Chart

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


@dataclass(frozen=True)
class FigureBlock:
    """A figure, with its numbers in a table beside it."""

    figure: Chart | Bars
    numbers: Table | None = None
    note: str = ""
    """A sentence under it."""


@dataclass(frozen=True)
class Fact:
    """One figure of a summary: what it is, its value, and a few words on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """The figures of a summary, side by side."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Passage:
    """Text in pieces, each plain, `learned` (what a model learns or has answered), or a `note`."""

    pieces: tuple[tuple[str, Literal["", "learned", "note"]], ...]


@dataclass(frozen=True)
class InlinePicture:
    """A picture whose bytes stand in the page."""

    content: bytes
    kind: Literal["png", "jpeg"]
    caption: str
    """What it shows, also for those who do not see it."""


@dataclass(frozen=True)
class PageCard:
    """Some blocks under a small heading, in a frame."""

    heading: str
    blocks: tuple[str | Passage | InlinePicture, ...]
    style: Literal["", "right", "wrong"] = ""


@dataclass(frozen=True)
class Cards:
    """Cards side by side, as many as there is room for."""

    cards: tuple[PageCard, ...]


ReportBlock = str | Table | ReportPicture | Points | FigureBlock | Facts | Passage | InlinePicture | Cards
"""A paragraph, or one of the others."""


@dataclass(frozen=True)
class Banner:
    """The first thing a page says: a judgement, and the sentences that explain it."""

    style: Literal["good", "careful", "bad"]
    headline: str
    sentences: tuple[str, ...] = ()


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
    banner: Banner | None = None
    subtitle: str = ""
    has_contents: bool = False
    """Whether links to the sections stand at its top."""

    @property
    def is_drawn(self) -> bool:
        """Return whether it has figures, whose values the page's script tells."""
        return any(isinstance(block, FigureBlock) for section in self.sections for block in section.blocks)


def text_line(*texts: str, style: Style = "") -> Line:
    """Return a row of plain texts."""
    return Line(tuple(Entry(text) for text in texts), style)
