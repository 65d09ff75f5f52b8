"""The report of runs, as a user makes it: a process of its own, answers on disk, no model."""

from __future__ import annotations

import csv
import json

import pytest

from helpers.tool_runs import command, run
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.results import score
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

NAMES = ("chartqa_human", "chartqa_augmented", "mmniah_test_retrieval_text", "longvqa_32k_gqa", "longvqa_64k_gqa")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in NAMES:
        write_benchmark(folder, name, questions=4)
    return folder


def write_run(folder, root, stride, unanswered=()):
    """Write a run that is right in everything but the first question of each benchmark."""
    settle(folder, {"checkpoint": "c0ffee", "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": stride})
    for name in NAMES:
        benchmark = create(name)
        questions = list(benchmark.questions(root))
        log = AnswerLog(folder / name, 0)
        for number, question in enumerate(questions):
            truth = str(question.facts.get("answers") or question.facts["answer"])
            if (name, number) not in unanswered:
                log.add(Answer(question.id, truth if number else "?", "human: ?", 9, 1, 2, 0.1, "stop"))
        log.close()
        score(benchmark, questions, folder / name, root, "corrected")
    return folder


def rows(path, key):
    with open(path, encoding="utf-8") as stream:
        return {row[key]: row for row in csv.DictReader(stream)}


def test_a_report_of_two_runs(root, tmp_path):
    whole = write_run(tmp_path / "whole", root, "64")
    part = write_run(tmp_path / "part", root, "16", unanswered={("chartqa_human", 3)})
    out = tmp_path / "report"
    line = [str(whole), f"less={part}", "--root", str(root), "--out", str(out), "--against", "InternVL2-2B"]
    finished = run(command("tools/report.py", *line), tmp_path / "log", tmp_path)
    assert finished.status == 0, finished.output[-3000:]
    for name in finished.output.split():
        if name.startswith(str(out)):
            assert (out / name).stat().st_size > 0
    table = rows(out / "general.csv", "Model")
    assert len(table) == 10 + 4 and table["whole"]["ChartQA"] == "75.00" and table["less"]["ChartQA"] == "62.50"
    assert table["whole - InternVL2-2B"]["ChartQA"] == "+3.30" and table["whole"]["Avg"] == ""
    assert "chartqa_human: 1 of 4 without an answer" in table["less"]["notes"]
    assert table["InternVL2-V2PE-32K"]["Avg"] == "72.71"
    strides = {(row["stride"], row["length"]) for row in csv.DictReader((out / "by_stride.csv").open())}
    assert {("16", "32k"), ("64", "64k")} <= strides and (out / "heat_map_0_test.png").stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(out.glob("*.png"))) and "<script" not in page
    assert "| less | chartqa_human | 1 of 4 without an answer" in (out / "report.md").read_text()
    assert json.loads((part / "chartqa_human" / "results.json").read_text())["missing"]


def test_without_a_run_and_what_a_user_can_mend(tmp_path):
    finished = run(command("tools/report.py", "--out", str(tmp_path / "report")), tmp_path / "log", tmp_path)
    assert finished.status == 0, finished.output[-3000:]
    audit = rows(tmp_path / "report" / "audit.csv", "verdict")
    assert audit["does not follow"]["model"] == "InternVL2-V2PE-32K"
    finished = run(command("tools/report.py", "nowhere", "--out", "out"), tmp_path / "log", tmp_path)
    assert finished.status == 2 and "error: nowhere/run.json: no such file" in finished.output
    assert "Traceback" not in finished.output and not (tmp_path / "out").exists()
