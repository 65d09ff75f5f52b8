"""Markdown and HTML say the same, escape what is not theirs, and the HTML needs nothing beside it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from PIL import Image

from megatron_v2pe.base.pages.blocks import (
    Entry,
    Line,
    Points,
    ReportPage,
    ReportPicture,
    Section,
    Table,
    text_line,
)
from megatron_v2pe.base.pages.html import to_html
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.evaluate.report.build import Report, check_against
from megatron_v2pe.evaluate.report.figures import draw_heat_maps, draw_lines
from megatron_v2pe.evaluate.report.markdown import to_markdown
from megatron_v2pe.evaluate.report.needle_grids import Needle, grid_of
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs


class Reader(HTMLParser):
    """Checks that tags are closed in order and that nothing is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in ("meta", "img") else [tag]
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_both_forms(tmp_path):
    picture = tmp_path / "p.png"
    draw_lines({"a": {"1k": 1.0, "1M": 2.0}, "b": {"2k": 3.0}}, "t", picture)
    table = Table(
        ("model", "n"), (text_line("a|b <c> *d* e_f _g_", "1"), Line((Entry("x"), Entry("2", "i", True)), "run"))
    )
    document = ReportPage(
        "T & T", [Section("One", ["p <b>", table, Points(("q",))]), Section("Two", [ReportPicture(picture, "c")], True)]
    )
    markdown = to_markdown(document)
    assert "| a\\|b &lt;c> \\*d\\* e_f \\_g\\_ | 1 |" in markdown and "| x | **2**<sup>i</sup> |" in markdown
    assert "![c](p.png)" in markdown and "# T &amp; T" in markdown and "- q" in markdown
    reader = read(to_html(document))
    assert {"a|b <c> *d* e_f _g_", "p <b>", "q", "T & T"} <= set(reader.text)
    assert len(reader.loaded) == 1 and reader.loaded[0].startswith("data:image/png;base64,")


def test_no_text_is_markup_or_an_instruction_to_the_template(tmp_path):
    hostile = """<script>alert('x')</script> {{ 7 * 7 }} {% raw %} {# gone #} "onload=" </td> \ud800"""
    (tmp_path / "p.png").write_bytes(b"")
    table = Table((hostile,), (Line((Entry(hostile, hostile, strong=True),)),))
    blocks = [hostile, table, Points((hostile,)), ReportPicture(tmp_path / "p.png", hostile)]
    page = to_html(ReportPage(hostile, [Section(hostile, blocks), Section(hostile, [], folded=True)]))
    assert "<script" not in page and page.count("&lt;script&gt;") == 11
    assert page.encode() and "49" not in page and page.count("{{ 7 * 7 }} {% raw %} {# gone #}") == 11


def test_pictures_are_drawn(tmp_path):
    grid = grid_of([Needle(1000, 0.1, 1.0), Needle(64000, 1.0, 0.0)], "reference")
    draw_heat_maps([[("a", grid), ("b", None)], [("c", grid)]], "title", tmp_path / "h.png")
    with Image.open(tmp_path / "h.png") as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_the_same_runs_give_the_same_bytes(write_run, root, tmp_path):
    runs = open_runs([str(write_run("run", ["pope", "mmniah_test_retrieval_text"]))])
    files = []
    for out in ("a", "b"):
        written = Report(runs, score_runs(runs, root, {}), "reference", "InternVL2-2B").write(tmp_path / out)
        files.append({path.name: path.read_bytes() for path in written})
    assert files[0] == files[1] and len(files[0]) == 10


def test_an_unknown_row_is_refused():
    with pytest.raises(ConfigError, match="did you mean InternVL2-2B"):
        check_against("InternVL2-2b")
