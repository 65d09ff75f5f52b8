"""A report as one HTML file that needs nothing beside it: styles inside, pictures as data, no script."""

from __future__ import annotations

import base64
from html import escape

from megatron_v2pe.evaluate.report.document import Block, Document, Entry, Picture, Points, Section, Table

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --run: #2a78d61c; --quiet: #888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { border-bottom-width: 2px; font-weight: 600; vertical-align: bottom; }
.text { text-align: left; } td.text { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.run td { background: var(--run); font-weight: 600; } .other td { background: var(--run); }
.difference td { color: var(--quiet); font-style: italic; }
sup { font-weight: 400; font-size: 0.7em; line-height: 0; }
figure { margin: 1rem 0; } figure img { max-width: 100%; background: #fff; } figcaption { color: var(--quiet); }
summary { cursor: pointer; } summary h2 { display: inline; }
"""


def to_html(document: Document) -> str:
    """Return the whole file.

    Raises:
        OSError: a picture cannot be read.
    """
    title = escape(document.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(_section(section) for section in document.sections)
        + "\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    heading = f"<h2>{escape(section.heading)}</h2>"
    blocks = "\n".join(_block(block) for block in section.blocks)
    if section.folded:
        return f"<details>\n<summary>{heading}</summary>\n{blocks}\n</details>"
    return f"<section>\n{heading}\n{blocks}\n</section>"


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = escape(block.caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )
    if isinstance(block, Points):
        return "<ul>\n" + "\n".join(f"<li>{escape(sentence)}</li>" for sentence in block.sentences) + "\n</ul>"
    return f"<p>{escape(block)}</p>"


def _table(table: Table) -> str:
    head = "".join(f"<th{_kind(number, table)}>{escape(name)}</th>" for number, name in enumerate(table.header))
    rows: list[str] = []
    for line in table.lines:
        cells = "".join(f"<td{_kind(number, table)}>{_entry(entry)}</td>" for number, entry in enumerate(line.entries))
        style = f' class="{line.style}"' if line.style else ""
        rows.append(f"<tr{style}>{cells}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _kind(number: int, table: Table) -> str:
    return ' class="text"' if number < table.left else ""


def _entry(entry: Entry) -> str:
    text = escape(entry.text)
    text = f"<strong>{text}</strong>" if entry.strong else text
    return f"{text}<sup>{escape(entry.marks)}</sup>" if entry.marks else text
