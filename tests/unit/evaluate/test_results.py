"""Results: told with how much they are of; no answer, and none in any script, stops the scoring of a benchmark."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.results import as_line, score
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")

# One of each kind of scorer.
KINDS = {str(create(name).scorer): name for name in reversed(list(BENCHMARKS)) if create(name).scorer}
ODD = ["", None, " \n", "答案是B", "نعم", "😀", "Ｂ", "１２．５％", "½", "\x00"]


def write_answers(folder, questions, texts):
    log = AnswerLog(folder, 0)
    for question, text in zip(questions, texts, strict=False):
        stopped, problem = ("stop", None) if text is not None else ("error", "DataError: gone")
        log.add(Answer(question.id, text, "human: what", 10, 1, 2, 0.1, stopped, problem))
    log.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in {*KINDS.values(), "pope"}:
        write_benchmark(folder, name)
    return folder


@pytest.mark.parametrize("mode", ["corrected", "reference"])
@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_no_answer_in_any_script_stops_a_benchmark(root, tmp_path, name, mode):
    benchmark = create(name, mode, tmp_path / "cache")
    questions = list(benchmark.questions(root))
    for number, text in enumerate([*ODD, "mixed"]):
        texts = [text] * len(questions) if text != "mixed" else (ODD * len(questions))[: len(questions)]
        folder = tmp_path / str(number)
        write_answers(folder, questions, texts)
        result = score(benchmark, questions, folder, root, mode)
        assert 0 <= result["score"] <= 100 and len(result["failed"]) == texts.count(None)
        assert json.loads((folder / "results.json").read_text())["limit"] is None
        assert ("INCOMPLETE" in as_line(result)) == (None in texts)


def test_a_part_is_never_told_as_the_whole(root, tmp_path):
    benchmark = create("pope")
    questions = list(benchmark.questions(root))
    write_answers(tmp_path, questions, ["yes"] * 3)
    result = score(benchmark, questions[:3], tmp_path, root, "corrected", limit=3)
    assert (result["limit"], result["questions"], result["missing"]) == (3, 3, [])
    assert as_line(result).endswith("LIMITED: only the first 3 questions")
    result = score(benchmark, questions, tmp_path, root, "corrected")
    assert result["limit"] is None and len(result["missing"]) == len(questions) - 3
    line = as_line(result)
    assert f"ANOTHER VERSION: {len(questions)} questions, {benchmark.published} are published" in line
    assert f"INCOMPLETE: {len(questions) - 3} of {len(questions)} without an answer, 0 failed" in line
    assert "LIMITED" not in line
    plain = {**result, "published": len(questions), "missing": []}
    other = f" (reference: {plain['other_score']:.2f})" if plain["other_score"] != plain["score"] else ""
    assert as_line(plain) == f"{plain['title']:<28} {plain['score']:.2f}  mode corrected{other}"


def test_a_mode_that_stops_is_told_and_the_others_go_on(tmp_path):
    """The published scorer knows no task of MM-NIAH's long sets; the corrected one does."""
    name = "mmniah_long_128k"
    write_benchmark(tmp_path, name)
    for mode, scored in (("reference", False), ("corrected", True)):
        benchmark = create(name, mode)
        questions = list(benchmark.questions(tmp_path))
        write_answers(tmp_path / mode, questions, ["no"] * len(questions))
        result = score(benchmark, questions, tmp_path / mode, tmp_path, mode)
        assert ("score" in result) == scored and ("unscored" in result) != scored
        assert ("not scored in reference mode" in as_line(result)) != scored


@pytest.mark.parametrize(("mode", "words"), [("corrected", "count as wrong"), ("reference", "may call right")])
def test_what_no_answer_is_worth_is_said(root, tmp_path, mode, words):
    benchmark = create("chartqa_human", mode)
    questions = list(benchmark.questions(root))
    write_answers(tmp_path, questions, ["yes"])
    assert words in as_line(score(benchmark, questions, tmp_path, root, mode))
