"""Own questions have their section in the report: score, counts, worst answers, several files, several runs, alone."""

from __future__ import annotations

import csv
import json

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog, turns_text
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.report.build import Report
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs
from megatron_v2pe.evaluate.results import score

ROWS = [
    {"question": "Which?", "answer": "a"},
    {"question": "<image>\nWho?", "image": "1.png", "answer": ["Ann", "Bea"], "id": "who"},
    {"question": "When?", "answer": 1999},
    {"question": "Why?", "answer": "because"},
]
NEEDLE = {
    "context": "x",
    "question": "Which?",
    "answer": "Ann",
    "meta": {"placed_depth": 0.5, "context_length": 2000},
}


@pytest.fixture
def ask(tmp_path):
    """Return what leaves a run of own questions as `tools/evaluate.py` does, with given answers."""

    def write(folder, file, said, rows=None, checkpoint="c", **settings):
        if rows is not None:
            (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / folder
        settle(out, {"checkpoint": checkpoint, "rope_pos_id_version": "default", "mode": "corrected", **settings})
        benchmark = create(str(tmp_path / file))
        questions = list(benchmark.questions(tmp_path))
        log = AnswerLog(out / benchmark.name, 0)
        for question, text in zip(questions, said, strict=True):
            prompt = turns_text(question.turns).replace("<image>", "<image of 3 tiles>")
            if isinstance(text, Exception):
                log.add(Answer(question.id, None, prompt, 0, 0, 0, 0.1, "error", f"DataError: {text}"))
            elif text is not None:
                log.add(Answer(question.id, text, prompt, 9, 1, 2, 0.1, "stop"))
        log.close()
        return out, score(benchmark, questions, out / benchmark.name, tmp_path, "corrected")

    return write


def report(tmp_path, *folders):
    runs = open_runs([str(folder) for folder in folders])
    out = tmp_path / "report"
    Report(runs, score_runs(runs, tmp_path, {}), "reference", "InternVL2-V2PE-32K").write(out)
    return (out / "report.md").read_text(), (out / "report.html").read_text(), out


def section(text):
    return text[text.index("## Own questions") :].split("\n## ")[0]


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_of_own_questions_alone_is_a_report(ask, tmp_path):
    folder, result = ask("run", "mine.jsonl", ["A.", ValueError("1.png: no such image"), "2000", "Because"], ROWS)
    assert result["score"] == 50.0 and result["first_failure"]["id"] == "who"
    text, html, out = report(tmp_path, folder)
    mine = section(text)
    assert "| mine | run | default |" in mine and "**50.00**<sup>i</sup> | 25.00<sup>i</sup> | 4 | 2 | 1 | 0 |" in mine
    assert "2 of 2 that are not right" in mine and mine.index("failed: DataError: 1.png") < mine.index("2000")
    assert "| Ann \\| Bea |" in mine and "i: incomplete" in mine
    assert "Own questions" in html and "1.png: no such image" in html
    assert text.index("## Own questions") < text.index("## General MLLM benchmarks")
    assert "| run |" not in text[text.index("## General MLLM") :].split("## Completeness")[0]  # nothing to be compared
    lines = rows_of(out / "own_questions.csv")
    assert [(line["id"], line["score"]) for line in lines] == [("1", "100.00"), ("who", "0.00"), ("3", "0.00")] + [
        ("4", "100.00")
    ]
    assert {line["benchmark"] for line in rows_of(out / "scores.csv")} == {"mine"}


def test_several_files_and_runs_stand_side_by_side(ask, tmp_path):
    ask("one", "mine.jsonl", ["a", "Bea", "1999", "because"], ROWS)
    one, _ = ask("one", "image_retrieval.jsonl", ["Ann"], [NEEDLE])
    other, _ = ask("two", "mine.jsonl", ["a", None, "x", "y"])
    text, _, out = report(tmp_path, one, other)
    lines = [line for line in section(text).splitlines() if line.startswith(("| mine |", "| image_retrieval |"))]
    assert [line.split(" | ")[1] for line in lines] == ["one", "one", "two"]
    assert "**100.00**" in lines[0] and "**100.00** | 100.00 | 1 | 1 | 0 | 0 |" in lines[0] + lines[1]
    assert "**25.00**<sup>i</sup> | 25.00<sup>i</sup> | 4 | 1 | 0 | 1 |" in lines[2]
    assert "mine, one:" not in text and "mine, two: 3 of 3 that are not right" in text
    assert len(rows_of(out / "own_questions.csv")) == 4 + 1 + 4


def test_only_the_worst_few_are_shown(ask, tmp_path):
    rows = [{"question": f"Q{n}?", "answer": "a"} for n in range(9)]
    folder, _ = ask("run", "mine.jsonl", ["b"] * 9, rows)
    assert "5 of 9 that are not right" in section(report(tmp_path, folder)[0])


def test_a_file_that_was_edited_or_is_gone_leaves_the_score_that_was_written(ask, tmp_path):
    folder, _ = ask("run", "mine.jsonl", ["a", "Ann", "x", "y"], ROWS)
    text = section(report(tmp_path, folder)[0])
    assert "**50.00** |" in text
    changed = [{**ROWS[0], "question": "Another?"}, *ROWS[1:]]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    text = section(report(tmp_path, folder)[0])
    assert "**50.00**<sup>r</sup>" in text and "question 1 of" in text and "has been edited since" in text
    (tmp_path / "mine.jsonl").unlink()
    text = section(report(tmp_path, folder)[0])
    assert "**50.00**<sup>r</sup>" in text and "no such file" in text


def test_a_run_that_did_not_come_to_its_end_says_so(ask, tmp_path):
    folder, _ = ask("run", "mine.jsonl", ["a", "Ann", "x", "y"], ROWS)
    (folder / "mine" / "results.json").unlink()  # where its file lies stands there; it is looked for at --root
    text = section(report(tmp_path, folder)[0])
    assert "**50.00** |" in text
    (tmp_path / "mine.jsonl").unlink()
    text = section(report(tmp_path, folder)[0])
    assert "| mine | run |" in text and "no results.json" in text
    for path in (folder / "mine").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="neither of a benchmark nor of questions of one's own"):
        open_runs([str(folder)])


def test_the_folder_of_several_strides_is_told_apart(tmp_path):
    for stride in ("4", "16"):
        settle(tmp_path / "out" / f"stride_{stride}", {"checkpoint": "c"})
    with pytest.raises(DataError, match=r"run.json: no such file.*stride_4 .*stride_16"):
        open_runs([str(tmp_path / "out")])
