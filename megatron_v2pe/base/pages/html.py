"""A page as one HTML file that needs nothing beside it: styles, figures and pictures inside.

The page is `page.html.j2`; this file says what its blocks are. Every text is escaped, for a benchmark's questions and a
model's answers may hold anything. A page with figures has a script of a few lines, which tells values under the pointer
and asks for nothing outside of the page; without it all is there, too.

jinja2 is slower than the same page put together by hand: 6.8 ms a page against 0.5 ms, both measured. It is kept
because its `autoescape` escapes every text by itself, so that nobody can forget to do it; a report is written once.
"""

from __future__ import annotations

import base64
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from megatron_v2pe.base.pages.blocks import (
    Cards,
    Facts,
    FigureBlock,
    InlinePicture,
    Passage,
    Points,
    ReportPage,
    ReportPicture,
    Table,
)
from megatron_v2pe.base.pages.charts import Bars, Chart, colour_of
from megatron_v2pe.base.pages.svg import points_of, to_svg

_HERE = Path(__file__).parent

_TEMPLATE = "page.html.j2"
_SCRIPT = "page.js"
_KINDS = {
    "table": Table,
    "picture": ReportPicture,
    "points": Points,
    "figure": FigureBlock,
    "facts": Facts,
    "passage": Passage,
    "inline": InlinePicture,
    "cards": Cards,
    "chart": Chart,
}


def to_html(document: ReportPage) -> str:
    """Return the whole file; halves of a character that stand alone, which UTF-8 has not, become question marks.

    Raises:
        OSError: a picture cannot be read.
    """
    pages = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name, kind in _KINDS.items():
        pages.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    pages.filters["content"] = lambda picture: base64.b64encode(picture.path.read_bytes()).decode()
    numbers = count(1)
    pages.filters["base64"] = lambda content: base64.b64encode(content).decode()
    pages.filters["svg"] = lambda figure: Markup(to_svg(figure, next(numbers)))  # escapes its own texts
    pages.filters["points"] = points_of
    pages.filters["legend"] = _legend
    script = Markup((_HERE / _SCRIPT).read_text(encoding="utf-8"))
    text = pages.get_template(_TEMPLATE).render(document=document, script=script)
    return text.encode("utf-8", "replace").decode("utf-8")


def _legend(figure: Chart | Bars) -> list[tuple[str, str]]:
    """Return name and colour of each series, where there are several."""
    if isinstance(figure, Chart):
        names = [(one.name, colour_of(one.colour)) for one in figure.named]
    else:
        names = [(name, colour_of(number)) for number, (name, _) in enumerate(figure.groups)]
    return names if len(names) > 1 else []
