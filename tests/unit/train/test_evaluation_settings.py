"""What is refused of an evaluation while training before the run, and which questions are drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from helpers.tool_runs import settings
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog, turns_text
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.report.runs import open_runs
from megatron_v2pe.evaluate.report.scoring import score_runs
from megatron_v2pe.evaluate.results import as_line, score
from megatron_v2pe.evaluate.sample import drawn
from megatron_v2pe.recipes.registry import RECIPES
from megatron_v2pe.train import cli
from megatron_v2pe.train.evaluation.benchmarks import chosen, read
from megatron_v2pe.train.evaluation.settings import EvaluationConfig
from megatron_v2pe.train.preflight.run import check_run, inspect_run
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

BASE = ["--recipe", "debug", "model.model_name_or_path=m", "data.meta_path=d"]
SAVED = [*BASE, "checkpoint.save=s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SAVED, "evaluation.interval=5"], "evaluation.interval is 5, but evaluation.benchmarks names none"),
        ([*SAVED, "evaluation.benchmarks=pope", "evaluation.at_end=false"], "would never be asked: set evaluation.int"),
        ([*BASE, "checkpoint.save=none", "evaluation.benchmarks=pope"], "evaluation.benchmarks needs checkpoint.save"),
        ([*SAVED, "evaluation.benchmarks=pope", "evaluation.strides=64,x"], "evaluation.strides: "),
        ([*SAVED, "evaluation.benchmarks=pope", "model.spec=te"], "evaluation.benchmarks asks layers of model.spec lo"),
        (
            [*SAVED, "v2pe.rope_pos_id_version=default", "evaluation.benchmarks=pope", "evaluation.strides=64"],
            "evaluation.strides is 64, but v2pe.rope_pos_id_version is default, which has no strides",
        ),
        (
            [*SAVED, "v2pe.rope_pos_id_version=v2pe_rnd", "evaluation.benchmarks=pope", "evaluation.strides=1/2,0.5"],
            "a stride is named twice",
        ),
    ],
)
def test_settings_that_do_not_go_together(words, message):
    with pytest.raises(ConfigError, match="evaluation") as refused:
        cli.read_command(words, RECIPES, 1)
    assert message in str(refused.value)


def test_missing_data_and_wrong_names_are_refused_with_what_is_to_be_done(tmp_path):
    with pytest.raises(ConfigError, match="evaluation.benchmarks: docvqa_vall: no such benchmark.*docvqa_val"):
        chosen(EvaluationConfig(("docvqa_vall",), root=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"docvqa_test is scored by a server.*tools/evaluate.py"):
        chosen(EvaluationConfig(("docvqa_test",), root=str(tmp_path)))
    write_benchmark(tmp_path, "pope")
    assert [one.name for one in chosen(EvaluationConfig(("pope",), root=str(tmp_path)))] == ["pope"]
    with pytest.raises(DataError) as refused:
        chosen(EvaluationConfig(("pope", "docvqa_val", "mine.jsonl"), root=str(tmp_path)))
    for part in ("docvqa_val: data are missing", "mine: data are missing", str(tmp_path), "evaluation.root"):
        assert part in str(refused.value)
    assert "pope" not in str(refused.value).replace(str(tmp_path), "")
    (tmp_path / "failed.jsonl").write_text('{"question": "?", "answer": "a"}\n')
    with pytest.raises(ConfigError, match="failed.*rename the file"):
        chosen(EvaluationConfig(("failed.jsonl",), root=str(tmp_path)))
    (tmp_path / "mine.jsonl").write_text('{"question": "?", "answer": "a"}\n{"question": \n')
    with pytest.raises(DataError, match=r"mine.jsonl:2"):
        read(EvaluationConfig(("mine.jsonl",), root=str(tmp_path)))


def test_a_run_is_refused_before_it_starts_where_a_benchmark_lacks_its_data(golden, tmp_path):
    write_checkpoint_copy(golden / "reference_checkpoint", tmp_path / "hf")
    write_dataset(tmp_path / "data")
    write_benchmark(tmp_path, "pope")
    line = settings(tmp_path, tmp_path / "run", evaluation__benchmarks="pope,docvqa_val", evaluation__root=tmp_path)
    found = inspect_run(cli.read_command(line, RECIPES, 1).config, ranks=1)
    assert len(found.problems) == 1 and "docvqa_val: data are missing" in str(found.problems[0])
    with pytest.raises(DataError, match="docvqa_val: data are missing"):
        check_run(found.config, 1)
    assert not (tmp_path / "run").exists()
    line = settings(tmp_path, tmp_path / "run", evaluation__benchmarks="pope", evaluation__root=tmp_path)
    found = inspect_run(cli.read_command(line, RECIPES, 1).config, ranks=1)
    assert found.problems == [] and "evaluation: data of pope" in found.right


def test_a_score_of_a_sample_says_so_in_its_line_and_in_reports(tmp_path):
    benchmark = create("pope")
    write_benchmark(tmp_path, "pope")
    everything = list(benchmark.questions(tmp_path))
    asked = drawn("pope", everything, 4, 1)
    assert asked != everything[:4]
    settle(tmp_path / "run", {"mode": "corrected"})
    log = AnswerLog(tmp_path / "run" / "pope", 0)
    for question in asked:
        log.add(Answer(question.id, question.facts["answer"], turns_text(question.turns), 9, 1, 1, 0.1, "stop"))
    log.close()
    result = score(benchmark, asked, tmp_path / "run" / "pope", tmp_path, "corrected", 4, sampled=True)
    assert "SAMPLE: 4 questions, drawn of all" in as_line(result) and "INCOMPLETE" not in as_line(result)
    (opened,) = open_runs([str(tmp_path / "run")])
    found = score_runs([opened], tmp_path, {})["corrected"][opened.name]["pope"]
    assert found.value == result["score"] > 0 and found.questions == 4 and found.missing == 0
    assert "a drawn sample of 4 of 6" in found.completeness


def test_a_sample_depends_on_ids_and_seed_alone():
    questions = [SimpleNamespace(id=f"q{number}") for number in range(100)]

    def ids(count, seed=1, of=questions, name="a"):
        return [question.id for question in drawn(name, of, count, seed)]

    ten = ids(10)
    assert len(ten) == 10 and ten == [question.id for question in questions if question.id in ten]
    assert set(ids(10, of=questions[::-1])) == set(ten) < set(ids(20))
    assert set(ids(10, seed=2)) != set(ten) and set(ids(10, name="b")) != set(ten)
    assert ids(None) == ids(100) == ids(1000) == [question.id for question in questions]
    assert len({*ids(10, of=questions[:50])} & {*ten}) >= 2  # most of what was drawn of a part is drawn of the whole
