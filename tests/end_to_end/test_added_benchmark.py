"""A benchmark is one folder: that of docs/add_a_benchmark.md, outside of the package, is listed, asked and scored."""

from __future__ import annotations

import csv
import json
import re

import pytest

from helpers.documented_commands import blocks
from helpers.tool_runs import ROOT, command, run

PAGE = ROOT / "docs" / "add_a_benchmark.md"
NAME = "colour_pairs"
_FILE = re.compile(rf"^`{NAME}/([\w.]+)`:\n\n```(?:python|md)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The folder of the page."""
    folder = tmp_path_factory.mktemp("plugins") / NAME
    folder.mkdir()
    for name, text in _FILE.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_page_has_every_file_of_the_folder(plugin):
    expected = {"__init__.py", "questions.py", "scorer.py", "synthetic.py", "README.md"}
    assert {path.name for path in plugin.iterdir()} == expected


def test_the_commands_of_the_page_work_as_they_stand(plugin, tiny, tmp_path, monkeypatch):
    (block,) = (block for block in blocks(PAGE) if "MEGATRON_V2PE_PLUGINS" in block.text)
    export, *lines = block.text.strip().split("\n")
    assert export == f"export MEGATRON_V2PE_PLUGINS=plugins/{NAME}"
    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", f"plugins/{NAME}")
    (tmp_path / "plugins").symlink_to(plugin.parent)
    (tmp_path / "CHECKPOINT").symlink_to(tiny / "hf")
    said = []
    for number, line in enumerate(lines):
        python, tool, *arguments = line.split()
        assert python == "python"
        finished = run(command(tool, *arguments), tmp_path / f"log{number}", tmp_path)
        assert finished.status == 0, finished.output[-3000:]
        said.append(finished.output)
    made, listed, asked, _ = said
    assert made.endswith("work_dirs/sets: 1 benchmarks\n")
    assert re.search(rf"^{NAME} +1,000  data here$", listed, re.MULTILINE)
    assert re.search(r"^groups: all, general, .*, colours$", listed, re.MULTILINE)
    assert re.search(r"^Colour Pairs +\d+\.\d\d  mode corrected", asked, re.MULTILINE)
    assert "ANOTHER VERSION: 4 questions, 1000 are published" in asked

    result = json.loads((tmp_path / "work_dirs/evaluate/run" / NAME / "results.json").read_text())
    assert result["scorer"] == NAME and result["answered"] == 4 and not result["failed"]
    assert result["summary"] == {"accuracy": result["score"] / 100}
    answers = (tmp_path / "work_dirs/evaluate/run" / NAME / "answers-00000.jsonl").read_text().splitlines()
    assert len(answers) == 4 and "Do both pictures show the same colour?" in answers[0]

    report = tmp_path / "work_dirs/report"
    assert "Colour Pairs" in (report / "report.md").read_text()
    with open(report / "scores.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if NAME in row.values()]
    assert rows


def test_its_scorer_reads_an_answer_in_both_modes(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGATRON_V2PE_PLUGINS", str(plugin))
    script = """
from megatron_v2pe.evaluate.benchmark_names import create, expand
from megatron_v2pe.evaluate.scorer_names import scorer_of
assert expand(["colours"]) == expand(["ColourPairs-test"]) == ["colour_pairs"]
assert expand(["all"])[-1] == "colour_pairs" and expand(["all"])[0] == "chartqa_human"
scorer = scorer_of(create("colour_pairs").scorer)
items = [{"prediction": said, "answer": "no"} for said in ("no", "No, they differ.", "yes")]
assert [scorer.score(item, "reference") for item in items] == [1, 0, 0]
assert [scorer.score(item, "corrected") for item in items] == [1, 1, 0]
assert scorer_of("pope").name == "pope"
"""
    (tmp_path / "script.py").write_text(script)
    finished = run(command(str(tmp_path / "script.py")), tmp_path / "log", tmp_path)
    assert finished.status == 0, finished.output[-3000:]
