"""The page of a run: what it says, that it needs nothing beside it, and how runs are compared."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from helpers.run_pages import HOSTILE, row, write_run
from megatron_v2pe.base.pages.charts import Bars, Chart, Series, layout_bars, layout_chart, shown, smoothed, thinned
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.train.page.build import page_of, write_page
from megatron_v2pe.train.page.compare import RunComparison, names_of
from megatron_v2pe.train.page.judgement import judge
from megatron_v2pe.train.page.run_files import open_run


class Reader(HTMLParser):
    """Texts, headings and what a page would load."""

    def __init__(self):
        super().__init__()
        self.text, self.loaded, self.tags = "", [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and value]
        if tag == "img":
            assert dict(attrs).get("alt"), "every picture says what it shows"

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def test_a_page_says_what_the_files_say_and_needs_nothing_beside_it(tmp_path):
    page, picture = write_page(write_run(tmp_path / "run"))
    reader = read(page)
    for words in (
        "2 samples were left out",
        "It was interrupted and went on after step 30.",
        "Loss by data set, smoothed",
        "Validation loss beside the training loss",
        "Data sets: samples asked for and drawn",
        "75.0%",  # 30 of 40 samples are of the first set, 50% were asked for
        "16-22",  # the bin of ten documents
        "cannot read boat.jpg",
        "What is it? ",
        "A boat.",
        "What is in the picture?",
        "optimizer.lr",
        "2.12, then 2.13",
        HOSTILE,
    ):
        assert words in reader.text, words
    assert all(one.startswith(("#s", "data:image/")) for one in reader.loaded), reader.loaded
    assert reader.tags.count("script") == 1 and reader.tags.count("svg") >= 10
    assert "alert(1)</script>" not in page.read_text()
    with Image.open(picture) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(1 << 20)) > 30


def test_a_run_without_a_record_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "logs" / "run_record.json").unlink()
    shutil.rmtree(folder / "evaluation")
    assert "This run has no record of its data" in read(write_page(folder / "logs", tmp_path / "out")[0]).text
    (folder / "logs" / "run_record.json").write_text("{")
    assert "run_record.json" in read(write_page(folder, tmp_path / "out")[0]).text, "a damaged record is named"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither it nor its folder logs holds metrics.jsonl; name the folder"):
        write_page(tmp_path)


FALLING = [row(step) for step in range(1, 41)]
JUDGED = {
    "falls": (FALLING, {"skipped": {}}, "good", "Healthy: the loss fell from 2.08 to 0.104 in 40 steps."),
    "rises in a few steps": ([row(n, loss=n) for n in range(1, 4)], {}, "careful", "the logged steps are too few"),
    "rises": ([row(step, loss=step) for step in range(1, 41)], {}, "bad", "Not healthy: the loss did not fall: 2.5"),
    "is no number": ([*FALLING, row(41, loss=None)], {"skipped": {}}, "good", "Healthy: the loss fell"),
    "skipped steps": ([*FALLING, row(41, **{"health/skipped": 1.0})], {}, "careful", "Look at this run: 1 steps were"),
    "diverged": ([*FALLING, row(41, **{"health/diverged": 1.0})], {}, "bad", "Not healthy: ranks have diverged"),
    "clipped": (
        [row(step, grad_norm=9.0) for step in range(1, 41)],
        {},
        "careful",
        "still in most of the last quarter",
    ),
    "learned by heart": (
        [row(step, **{"validation/loss": 1.0 + abs(step - 9) / 10}) for step in range(1, 41)],
        {"skipped": {}},
        "careful",
        "validation loss has risen from 1 at step 9 to 4.1",
    ),
    "waits": (
        [row(step, data_wait_seconds=0.25) for step in range(1, 41)],
        {"skipped": {}},
        "careful",
        "50% of the time",
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_what_a_page_says_first(tmp_path, name):
    rows, record, style, words = JUDGED[name]
    banner = judge(open_run(write_run(tmp_path / "run", rows, **record)))
    assert banner.style == style and words in banner.headline, banner


def test_a_page_of_one_step_and_of_none(tmp_path):
    assert page_of(open_run(write_run(tmp_path / "one", [row(1)]))).banner.style == "careful"
    write_page(tmp_path / "one")
    write_page(write_run(tmp_path / "none", []))
    assert "no step is logged" in (tmp_path / "none" / "logs" / "run.html").read_text()


def test_runs_side_by_side(tmp_path):
    slow = [row(step, loss=8.0 / step) for step in range(1, 61)]
    first = open_run(write_run(tmp_path / "a"))
    second = open_run(write_run(tmp_path / "b", slow, settings={"optimizer": {"clip_grad": 1.0, "lr": 0.25}}))
    comparison = RunComparison(names_of([("fast", first), ("slow", second)]), loss=0.5)
    text = comparison.text()
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["run", "fast", "slow"]
    assert [line.split() for line in text.splitlines() if line.startswith("optimizer.lr")] == [
        ["optimizer.lr", "0.5", "0.25"]
    ]
    assert "clip_grad" not in text, "what is equal is not listed"
    reached = {line.split()[0]: line.split()[-2:] for line in text.splitlines()[1:3]}
    assert reached["fast"] == ["4", "s"] and reached["slow"] == ["8", "s"]  # loss 4/8 after 8 steps of 0.5 s, 8/16
    by_tokens = RunComparison(comparison.runs, axis="tokens").charts()[0]
    assert by_tokens.series[0].points[-1][0] == 60_000
    page = read(comparison.write(tmp_path / "out")[0])
    assert "Settings that differ" in page.text and "fast" in page.text
    with pytest.raises(ConfigError, match="two runs are called x: give them names"):
        names_of([("x", first), ("x", second)])


def test_no_peak_is_lost_and_a_constant_stays_one():
    points = [(float(step), 1.0) for step in range(5000)]
    points[3333] = (3333.0, 99.0)
    assert max(value for _, value in thinned(points)) == 99.0 and len(thinned(points)) <= 400
    assert {value for _, value in smoothed([(float(step), 2.0) for step in range(100)])} == {2.0}


@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (5.0, 5.0), (-1e9, 1e9), (1e-12, 3e-12), (math.nan, 1.0), (1.0, math.inf)]
)
def test_every_chart_has_a_layout_inside_its_box(values):
    line = Series("a", tuple(enumerate(map(float, values))), 0)
    for log in (False, True):
        for shape in layout_chart(Chart("t", (line,), log=log)):
            places = shape.points if hasattr(shape, "points") else [shape.place[:2]]
            assert all(-1 <= x <= 441 and -1 <= y <= 251 for x, y in places), shape
    assert layout_bars(Bars("t", ("k",), (("g", (1.0,)),)))


def test_numbers_as_an_axis_shows_them():
    found = [shown(value) for value in (0, 1, 0.25, 1234.5, 12345, 3.4e6, 5e-4, 2.5e-4, 1e-10, -7)]
    assert found == ["0", "1", "0.25", "1,234", "12.35k", "3.4M", "5e-4", "2.5e-4", "1e-10", "-7"]


def test_the_record_of_a_later_version_is_named(tmp_path):
    folder = write_run(tmp_path / "run", form=99)
    run = open_run(folder)
    assert run.record.settings == {} and "form 99" in run.problems[0]
    assert json.loads((folder / "logs" / "run_record.json").read_text())["form"] == 99


DAMAGED = {
    "a pack without its fields": ({"packs": [{}]}, "packs[0]: "),
    "a document that is none": ({"packs": [{"step": 1, "documents": [3], "all_documents": 1}]}, "documents[0]: "),
    "counts that are none": ({"drawn": {"sets": {"photos": 3}}}, "drawn: "),
    "bins without end": ({"drawn": {"lengths": [0] * 5000 + [1]}}, "bins"),
    "a section that is none": ({"settings": {"optimizer": "x"}}, "settings: "),
    "a session that is none": ({"sessions": [{"from": "x"}]}, "sessions[0]: "),
    "an example that is none": ({"skipped": {"x": 1}, "examples": [{}]}, "examples[0]: "),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_record_of_wrong_types_is_named_on_the_page(tmp_path, name):
    record, words = DAMAGED[name]
    run = open_run(write_run(tmp_path / "run", **record))
    assert run.record.packs == [] and words in run.problems[0], run.problems
    assert "run_record.json" in read(write_page(tmp_path / "run")[0]).text


def test_settings_and_values_that_are_no_numbers_are_passed_over(tmp_path):
    settings = {"optimizer": {"clip_grad": "x"}, "data": {"max_packed_tokens": [1]}, "checkpoint": {"save": 3}}
    rows = [row(1), row(2, tokens=10**300 * 10**9)]
    run = open_run(write_run(tmp_path / "run", rows, settings=settings))
    assert run.points("tokens") == ((1.0, 1000.0),)
    write_page(tmp_path / "run")
