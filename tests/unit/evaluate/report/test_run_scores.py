"""Scores are those of the raw answers, in both modes; nothing partial passes for whole; nothing of a run is changed."""

from __future__ import annotations

import json

import pytest

from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.answers import Answer
from megatron_v2pe.evaluate.report.runs import open_runs, read_server_scores, stride_order
from megatron_v2pe.evaluate.report.scoring import score_runs
from megatron_v2pe.evaluate.report.tables import score_marks
from megatron_v2pe.foreign.seal import seal


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes, "check": "drop"}
    path.write_text(json.dumps(seal({key: value for key, value in content.items() if value != "drop"})))


def scored(folder, root, mode="reference", server=None):
    (run,) = open_runs([str(folder)])
    return score_runs([run], root, server or {})[mode][run.name]


def test_recomputed_from_answers_and_nothing_is_written(write_run, root):
    folder = write_run("run", ["chartqa_human", "pope"], lambda name, number, q: None if number == 4 else "yes")
    edit(folder / "chartqa_human" / "results.json", score=99.0)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    score = scored(folder, root)["chartqa_human"]
    assert score.value == 0.0 and score.source == "answers" and (score.missing, score.failed) == (1, 0)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_missing_and_failed_are_counted_and_the_answered_told(write_run, root):
    def said(name, number, question):
        failed = Answer(question.id, None, "?", 0, 0, 0, 0.0, "error", "MemoryError: no memory")
        return [None, failed][number] if number < 2 else question.facts["answers"]

    score = scored(write_run("run", ["chartqa_human"], said), root)["chartqa_human"]
    assert (score.questions, score.missing, score.failed) == (5, 1, 1)
    assert (score.value, score.answered_value) == (60.0, 100.0) and "i" in score_marks(score)
    assert score.completeness.startswith("1 of 5 without an answer, 1 of 5 failed")


@pytest.mark.parametrize("key", [{"limit": 2}, {"limit": "drop"}], ids=["limit stated", "limit inferred"])
def test_a_limited_run_is_marked(write_run, root, key):
    folder = write_run("run", ["mmniah_test_retrieval_text"], limit=2)
    edit(folder / "mmniah_test_retrieval_text" / "results.json", **key)
    score = scored(folder, root, "corrected")["mmniah_test_retrieval_text"]
    assert score.value == 100.0 and score.missing == 0 and (score.limit, score.of_all) == (2, 5)
    assert score.completeness == "only the first 2 of 5, data of 5 questions, 3072 are published"
    assert score_marks(score) == "i"


def test_a_run_stopped_before_its_results_counts_all_questions(write_run, root):
    folder = write_run("run", ["mmniah_test_retrieval_text"], limit=2)
    (folder / "mmniah_test_retrieval_text" / "results.json").unlink()
    score = scored(folder, root, "corrected")["mmniah_test_retrieval_text"]
    assert (score.questions, score.missing, score.limit) == (5, 3, None) and score_marks(score) == "i"


def test_data_of_another_size_than_published_are_marked(write_run, root):
    score = scored(write_run("run", ["chartqa_human"]), root)["chartqa_human"]
    assert score.completeness == "data of 5 questions, 1250 are published" and score_marks(score) == "i"


def test_without_data_the_results_are_taken_and_marked(write_run, root, tmp_path):
    folder = write_run("run", ["chartqa_human", "docvqa_val"], limit=3)
    edit(folder / "docvqa_val" / "results.json", limit=3)
    (folder / "chartqa_human" / "results.json").unlink()
    both = {mode: scored(folder, tmp_path / "none", mode) for mode in ("reference", "corrected")}
    assert both["reference"]["docvqa_val"].value == 100.0
    assert score_marks(both["reference"]["docvqa_val"]) == "ir"  # results.json has the number of the other mode too
    assert score_marks(both["corrected"]["docvqa_val"]) == "ir"
    assert "val_v1.0.json: no such file" in both["reference"]["docvqa_val"].problem
    edit(folder / "docvqa_val" / "results.json", other_score="drop")  # as older versions wrote it
    assert score_marks(scored(folder, tmp_path / "none", "reference")["docvqa_val"]) == "irm"
    assert both["reference"]["chartqa_human"].value is None
    assert "no results.json" in both["reference"]["chartqa_human"].problem


def test_answers_of_other_data_are_not_scored_against_these(write_run, root):
    folder = write_run("run", ["chartqa_human"])
    path = folder / "chartqa_human" / "answers-00000.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    del first["check"]
    path.write_text(path.read_text() + json.dumps(first | {"id": "elsewhere"}) + "\n")
    score = scored(folder, root)["chartqa_human"]
    assert score.source == "results" and "1 of 6 answers belong to no question" in score.problem


def test_what_the_published_code_stops_at_is_left_out_and_marked(write_run, root):
    folder = write_run("run", ["seed"], lambda name, number, q: "" if number == 0 else q.facts["answer"])
    reference, corrected = (scored(folder, root, mode)["seed"] for mode in ("reference", "corrected"))
    assert reference.stopped == 1 and "s" in score_marks(reference) and reference.value == 100.0
    assert corrected.stopped == 0 and corrected.value < 100.0


def test_nothing_at_all_to_score(write_run, root):
    score = scored(write_run("run", ["seed"], lambda *_: ""), root)["seed"]
    assert score.value is None and "nothing could be scored: IndexError" in score.problem


def test_long_needles_have_a_number_in_both_modes(write_run, root):
    folder = write_run(
        "run", ["mmniah_long_1m"], lambda name, number, q: None if number == 0 else "ABCDE"[q.facts["answer"]]
    )
    for mode in ("reference", "corrected"):
        score = scored(folder, root, mode)["mmniah_long_1m"]
        assert 0 < score.value < 100 and score.needles and "e" not in score_marks(score)


def test_empty_cells_that_count_as_nothing_are_marked(write_run, root):
    folder = write_run("run", ["mmniah_test_reasoning_text"])
    reference, corrected = (
        scored(folder, root, mode)["mmniah_test_reasoning_text"] for mode in ("reference", "corrected")
    )
    assert reference.value < corrected.value == 100.0
    assert reference.empty_cells == 55 - 5 and score_marks(reference) == "ie" and score_marks(corrected) == "i"


def test_server_scores(write_run, root):
    folder = write_run("run", ["mmbench_test_en", "pope"])
    assert scored(folder, root)["mmbench_test_en"].value is None
    runs = open_runs([f"a={folder}"])
    given = read_server_scores(["a:mmbench_test_en=73.1"], runs)
    score = score_runs(runs, root, given)["reference"]["a"]["mmbench_test_en"]
    assert score.value == 73.1 and score.problem is None and "v" in score_marks(score)
    for word, told in (
        ("a:mmbench_test_en", "RUN:BENCHMARK=PERCENT"),
        ("a:mmbench_test_en=731", "RUN:BENCHMARK=PERCENT"),
        ("b:mmbench_test_en=7", "no run 'b', only a"),
        ("a:mmbench_test=7", "did you mean mmbench_test_en"),
    ):
        with pytest.raises(ConfigError, match=told):
            read_server_scores([word], runs)
    with pytest.raises(ConfigError, match="a:pope: it is scored here"):
        score_runs(runs, root, read_server_scores(["a:pope=7"], runs))


def test_folders(write_run, tmp_path):
    folder = write_run("with=sign", ["pope"])
    assert [run.name for run in open_runs([str(folder), f"b={folder}"])] == ["with=sign", "b"]
    with pytest.raises(ConfigError, match="both called b"):
        open_runs([f"b={folder}", f"b={folder}"])
    with pytest.raises(DataError, match="run.json: no such file"):
        open_runs([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text('{"settings": {}}')
    with pytest.raises(DataError, match="empty: no answers and no results.json"):
        open_runs([str(tmp_path / "empty")])
    (tmp_path / "empty" / "run.json").write_text("[1]")
    with pytest.raises(DataError, match=r"run.json: holds a list, expected an object. It is not an evaluation's"):
        open_runs([str(tmp_path / "empty")])
    (folder / "pope" / "results.json").write_text("{}")
    with pytest.raises(DataError, match=r"results.json: .*'questions'.*missing. Not what an evaluation writes"):
        score_runs(open_runs([str(folder)]), tmp_path, {})


def test_strides_are_sorted_as_numbers():
    assert sorted(["default", "64", "256", "1/2", "random", "8"], key=stride_order) == [
        *("1/2", "8", "64", "256", "default", "random")
    ]
