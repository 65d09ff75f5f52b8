"""Small data are marked wherever a number of them stands: tables, averages, differences, series, strides, CSV files."""

from __future__ import annotations

import csv
import re

import pytest

from megatron_v2pe.evaluate.report.build import Report
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs

SETS = (
    *("chartqa_human", "chartqa_augmented", "docvqa_val", "ai2d", "infovqa_val", "scienceqa", "pope", "seed"),
    *("mmbench_dev_en", "mmniah_long_128k", "longvqa_32k_gqa", "longvqa_40k_gqa"),
    *(f"mmniah_test_{task}_{kind}" for task in ("retrieval", "counting", "reasoning") for kind in ("text", "image")),
    *("milebench_textneedleinahaystack", "milebench_imageneedleinahaystack"),
)


@pytest.fixture
def written(write_run, root, tmp_path):
    """Folder of a report of two strides of made-up sets, each with a few questions and right answers."""
    folders = [str(write_run(f"s{stride}", SETS, rope_pos_id_stride=stride)) for stride in ("16", "64")]
    runs = open_runs(folders)
    Report(runs, score_runs(runs, root, {}), "reference", "InternVL2-2B").write(tmp_path / "report")
    return tmp_path / "report"


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_number_of_a_csv_file_has_its_mark(written):
    for name in ("general", "long_context"):
        ours = [row for row in rows_of(written / f"{name}.csv") if row["kind"] != "published"]
        assert {row["kind"] for row in ours} >= {"run", "difference"}
        for row in ours:
            marked = dict(part.split(": ", 1) for part in row["marks"].split("; ") if part)
            numbers = [key for key, value in row.items() if re.fullmatch(r"[+-]?\d+\.\d+", value)]
            assert numbers and all("i" in marked[key] for key in numbers), row
    for name, key in (
        ("scores", "marks"),
        ("by_length", "marks"),
        ("by_stride", "marks of the suite"),
        ("heat_maps", "marks of the suite"),
    ):
        rows = rows_of(written / f"{name}.csv")
        assert rows and all("i" in row[key] or "u" in row[key] for row in rows if row["score"]), name


def test_every_number_of_a_table_has_its_mark(written):
    text = (written / "report.md").read_text()
    own = [line for line in text.splitlines() if re.match(r"\| s(16|64)\b", line)]
    cells = [cell for line in own for cell in line.split(" | ") if re.match(r"\*{0,2}[+-]?\d+\.\d+\b(?!\.)", cell)]
    assert len(cells) > 60
    plain = [cell for cell in cells if "<sup>" not in cell]
    assert not plain
    strides = text[text.index("## Score by stride and length") :].split("\n## ")[0]
    assert len(re.findall(r"\(marks: \w*[iu]\w*\):", strides)) == 3  # MM-NIAH test, its long set, Long-VQA
    for heading in ("MM-NIAH by length and depth", "Score by stride and length", "Every benchmark in both modes"):
        part = text[text.index(f"## {heading}") :].split("\n## ")[0]
        assert "- i: incomplete" in part, heading
    assert "how many questions are published is not known here" in text
    assert "Every benchmark of every run is complete" not in text
