"""A report as it is read: lengths and strides in natural order, own questions with one number and its marks."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.base.pages.blocks import Table
from megatron_v2pe.evaluate.answers import Answer, AnswerLog, turns_text
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.report.build import Report
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs
from megatron_v2pe.evaluate.report.sections import series_section
from megatron_v2pe.evaluate.report.series import Point
from megatron_v2pe.evaluate.results import score


def asked(folder, file, *said):
    """Leave a run of own questions as the evaluation does; None has no answer."""
    settle(folder, {"checkpoint": "c", "rope_pos_id_version": "default", "mode": "corrected"})
    benchmark = create(str(file))
    questions = list(benchmark.questions(file.parent))
    log = AnswerLog(folder / benchmark.name, 0)
    for question, text in zip(questions, said, strict=True):
        if text is not None:
            log.add(Answer(question.id, text, turns_text(question.turns), 9, 1, 2, 0.1, "stop"))
    log.close()
    score(benchmark, questions, folder / benchmark.name, file.parent, "corrected")
    return folder


def lines(folder, *runs):
    opened = open_runs([str(run) for run in runs])
    Report(opened, score_runs(opened, folder, {}), "reference", "InternVL2-V2PE-32K").write(folder / "report")
    return (folder / "report" / "report.md").read_text().splitlines()


@pytest.fixture
def file(tmp_path):
    rows = [{"question": "Which?", "answer": "a"}, {"question": "Who?", "answer": "Ann"}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_of_both_modes_are_marked_and_completeness_tells_that_of_the_section(tmp_path, file):
    written = lines(tmp_path, asked(tmp_path / "run", file, "a.", None))
    (row,) = [line for line in written if line.startswith("| mine |")]
    assert "**50.00**<sup>i</sup> | 0.00<sup>i</sup> | 2 | 1 | 0 | 1 |" in row
    (row,) = [line for line in written if line.startswith("| run | mine | 1 of 2 without an answer")]
    assert row.endswith("| 50.0<sup>i</sup> | 100.0 |")


def test_the_right_option_of_a_needle_is_told_as_its_letter(tmp_path):
    meta = {"placed_depth": 0.5, "context_length": 900, "choices": ["left", "right"]}
    row = {"id": 7, "context": "Once.", "question": "Where?", "answer": 1, "images_list": [], "meta": meta}
    file = tmp_path / "image_reasoning.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (row,) = [line for line in lines(tmp_path, asked(tmp_path / "run", file, "A")) if line.startswith("| 7 |")]
    assert row.endswith("| B | A | 0.0 |")


def test_runs_stand_in_the_order_given_and_those_of_a_shell_in_natural_order(tmp_path, file):
    runs = {name: asked(tmp_path / name, file, "a", "Ann") for name in ("stride_16", "stride_4", "stride_64")}
    opened = open_runs([str(runs[name]) for name in sorted(runs)])
    assert [run.name for run in opened] == ["stride_4", "stride_16", "stride_64"]
    given = ["stride_64", "stride_4", "stride_16"]
    assert [run.name for run in open_runs([str(runs[name]) for name in given])] == given


def test_lengths_stand_by_size_whichever_run_has_them_first():
    def point(run, length):
        return Point("MM-NIAH val", run, "4", length, 50.0, 6, 6, 1, 0, "u")

    section = series_section([point("a", "4k"), point("b", "<1k"), point("b", "1k"), point("b", "16k")], [])
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.header == ("run", "stride", "<1k", "1k", "4k", "16k")
