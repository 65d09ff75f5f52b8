"""A part of a benchmark is never told as the whole: every published number of questions is known, or said not to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.results import as_line, score
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

ROOT = Path(__file__).parents[3]


COUNTS = {name: count for name in BENCHMARKS if (count := create(name).published_count) is not None}
NOTES = {name: create(name).published_count_note for name in BENCHMARKS if name not in COUNTS}


def test_every_benchmark_has_its_number_or_says_what_is_known():
    starts = ("mmniah_val_", "mmniah_long_", "longvqa_", "ocrvqa_")
    assert [*NOTES] == [name for name in BENCHMARKS if name.startswith(starts)]
    assert all(NOTES.values()) and all(count.source for count in COUNTS.values())


def test_numbers_add_up_to_what_the_papers_say():
    def total(start):
        return sum(count.questions for name, count in COUNTS.items() if name.startswith(start))

    assert total("mmniah_test_") == 17_787 and total("milebench_") == 6_440
    assert total("chartqa_") == 2_500 and create("seed").published == 17_990


def test_the_page_has_the_same_numbers():
    page = (ROOT / "docs" / "evaluation_data.md").read_text(encoding="utf-8")
    assert not [name for name, count in COUNTS.items() if f"{count.questions:,}" not in page]
    assert not [note for note in NOTES.values() if note not in page]


@pytest.mark.parametrize(
    "name",
    [
        *("seed", "pope", "milebench_alfred", "milebench_gpr1200", "mmniah_test_counting_image"),
        *("mmniah_val_retrieval_text", "longvqa_40k_gqa", "mmniah_long_256k", "ocrvqa_test"),
    ],
)
def test_a_made_up_set_is_marked_on_the_console(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path, name)
    benchmark = create(name)
    questions = list(benchmark.questions(tmp_path))
    log = AnswerLog(tmp_path / "out", 0)
    for question in questions:
        log.add(Answer(question.id, "yes", "human: ?", 9, 1, 2, 0.1, "stop"))
    log.close()
    line = as_line(score(benchmark, questions, tmp_path / "out", tmp_path, "corrected"))
    known = benchmark.published
    expected = "UNCHECKED: " if known is None else f"ANOTHER VERSION: {len(questions)} questions, {known} are published"
    assert expected in line and "mode corrected" in line


def test_the_number_of_the_other_mode_is_told_where_it_differs(tmp_path, monkeypatch):
    """A console that says 0 and a report that says 66.7 of the same answers must say why."""
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path, "chartqa_human")
    benchmark = create("chartqa_human")
    (question, *_) = questions = list(benchmark.questions(tmp_path))
    log = AnswerLog(tmp_path / "out", 0)
    log.add(Answer(question.id, f"{question.facts['answers']}.", "human: ?", 9, 1, 2, 0.1, "stop"))
    log.add(Answer(questions[1].id, None, "human: ?", 9, 1, 2, 0.1, "error", "DataError: x.png: no such image"))
    log.close()
    result = score(benchmark, questions[:2], tmp_path / "out", tmp_path, "corrected", limit=2)
    line = as_line(result)
    assert f"the first that failed, {questions[1].id}: x.png: no such image" in line
    if result["score"] != result["other_score"]:
        assert f"(reference: {result['other_score']:.2f})" in line
    assert f"(reference: {12.5:.2f})" in as_line({**result, "score": 50.0, "other_score": 12.5})
