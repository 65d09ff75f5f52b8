"""A report as Markdown; pictures are links to the files beside it."""

from __future__ import annotations

import re

from megatron_v2pe.base.pages.blocks import Entry, Points, ReportBlock, ReportPage, ReportPicture, Table

_LONE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""Inside of a word it is no markup."""


def to_markdown(document: ReportPage) -> str:
    """Return the whole text."""
    parts = [f"# {_escaped(document.title)}"]
    for section in document.sections:
        parts += [f"## {_escaped(section.heading)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def _block(block: ReportBlock) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, ReportPicture):
        return f"![{_escaped(block.caption)}]({block.path.name})\n\n{_escaped(block.caption)}"
    if isinstance(block, Points):
        return "\n".join(f"- {_escaped(sentence)}" for sentence in block.sentences)
    assert isinstance(block, str), "a report has no other blocks"
    return _escaped(block)


def _table(table: Table) -> str:
    rule = ["---" if number < table.left else "---:" for number in range(len(table.header))]
    rows = [[_escaped(name) for name in table.header], rule]
    rows += [[_entry(entry) for entry in line.entries] for line in table.lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _entry(entry: Entry) -> str:
    text = _escaped(entry.text)
    text = f"**{text}**" if entry.strong else text
    return f"{text}<sup>{entry.marks}</sup>" if entry.marks else text


def _escaped(text: str) -> str:
    """Return a text in which nothing is Markdown or HTML."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*`[]":
        text = text.replace(mark, f"\\{mark}")
    return _LONE_UNDERSCORE.sub(r"\\_", text)
