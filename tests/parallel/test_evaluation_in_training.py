"""Benchmarks asked while training: the tool's answers in every layout, and a training that notices nothing of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers import evaluation_in_training as runs
from helpers.tool_runs import command, run, settings
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy, write_dataset

PICTURES, OWN = "longvqa_32k_gqa", "mine"
STEPS, SAMPLES = 2, 3
LAYOUTS = {
    "tp2_sp": {"parallel__tensor_model_parallel_size": 2, "parallel__sequence_parallel": True},
    "pp2": {"parallel__pipeline_model_parallel_size": 2},
    "cp2": {"parallel__context_parallel_size": 2},
    "dp2": {"parallel__overlap_grad_reduce": True, "parallel__overlap_param_gather": True},
}


@pytest.fixture(scope="module")
def tiny(golden, tmp_path_factory):
    """A folder with a tiny checkpoint, data to train on, a benchmark and questions of one's own."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf")
    write_dataset(folder / "data")
    write_benchmark(folder / "benchmarks", PICTURES)
    _write_own(folder, {})
    return folder


def _write_own(tiny, truth):
    """Write five questions, of which some have another answer than "-"."""
    rows = [
        {"id": f"own_{number}", "question": f"What is {number}?", "answer": truth.get(f"own_{number}", "-")}
        for number in range(5)
    ]
    text = "".join(json.dumps(row | {"max_new_tokens": 6}) + "\n" for row in rows)
    (tiny / "benchmarks" / f"{OWN}.jsonl").write_text(text)


def words(tiny, save, evaluated=True, **changes):
    """The command line of a run that evaluates at its end."""
    asked = {
        "evaluation__benchmarks": f"{PICTURES},{OWN}.jsonl",
        "evaluation__root": tiny / "benchmarks",
        "evaluation__samples": SAMPLES,
        "evaluation__max_num": 2,
    }
    short = {
        "train__train_steps": STEPS,
        "train__global_batch_size": 2,
        "train__precision": "fp32",
        "checkpoint__save_interval": 1,
    }
    return settings(tiny, save, **(short | (asked if evaluated else {}) | changes))


@pytest.fixture(scope="module")
def alone(tiny, pools):
    """The folder of a run of one process that evaluates after each step, and what it saw.

    Two of its answers are called right from now on, so that scores can differ.
    """
    save = tiny / "alone"
    seen = pools[1].run(runs.train, words=words(tiny, save, evaluation__interval=1))[0]
    given = answers(save)[OWN]
    _write_own(tiny, {name: given[name][0] for name in sorted(given)[:2]})
    return save, seen


def told(seen):
    """What training must not notice of an evaluation: loss and gradients to the bit, the weights, random numbers."""
    return [(row["loss"], row["grad_norm"], row["lr"]) for row in seen.rows], seen.weights, seen.random


def scores(seen):
    """The scores of the last step."""
    return {name: seen.rows[-1].get(f"evaluation/{name}") for name in (PICTURES, OWN, "failed", "failed_questions")}


def answers(save, step=STEPS):
    """The answers after a step by benchmark and question."""
    folder = save / "evaluation" / f"iter_{step:07d}"
    return {name: runs.answers(folder / name) for name in (PICTURES, OWN)}


EXPECTED = {PICTURES: 0.0, OWN: pytest.approx(200 / SAMPLES), "failed": 0, "failed_questions": 0}


def assert_as_the_tool(tiny, save, tmp_path):
    """Have the tool ask the checkpoint of a run, and compare its answers with those of the run's end."""
    line = ["--checkpoint", str(save), "--benchmarks", PICTURES, f"{OWN}.jsonl", "--root", str(tiny / "benchmarks")]
    finished = run(command("tools/evaluate.py", *line, "--out", str(tmp_path), "--max-num", "2"), tmp_path / "tool.log")
    assert finished.status == 0, finished.output[-4000:]
    for name, mine in answers(save).items():
        theirs = runs.answers(tmp_path / name)
        assert len(mine) == SAMPLES < len(theirs)
        assert mine == {key: theirs[key] for key in mine}


def test_the_tool_gives_the_same_answers_for_the_saved_checkpoint(tiny, alone, tmp_path):
    save, seen = alone
    assert_as_the_tool(tiny, save, tmp_path)
    for name, mine in answers(save).items():
        result = runs.results(save / "evaluation" / "iter_0000002" / name)
        assert set(result["sample"]) == set(mine) and result["failed"] == result["missing"] == []
        assert seen.rows[-1][f"evaluation/{name}"] == result["score"]
    assert runs.results(tmp_path / OWN)["score"] == 100 * 2 / 5
    assert answers(save, 1) != answers(save)  # so that weights of another step would be noticed
    assert set(answers(save, 1)[OWN]) == set(answers(save)[OWN])  # one sample for all times


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_and_trains_as_without(tiny, alone, pools, tmp_path, name):
    found = pools[2].run(runs.train, words=words(tiny, tmp_path / "with", **LAYOUTS[name]))
    assert answers(tmp_path / "with") == answers(alone[0])
    assert scores(found[0]) == EXPECTED
    if name in ("tp2_sp", "dp2"):
        without = pools[2].run(runs.train, words=words(tiny, tmp_path / "without", evaluated=False, **LAYOUTS[name]))
        assert list(map(told, found)) == list(map(told, without))
        assert [one.groups for one in found] == [one.groups for one in without]  # what was opened is closed


def test_a_broken_scorer_ends_no_run_and_training_is_as_without(tiny, alone, pools, tmp_path):
    without = pools[1].run(runs.train, words=words(tiny, tmp_path / "without", evaluated=False))[0]
    assert told(alone[1]) == told(without)
    broken = pools[1].run(runs.train, words=words(tiny, tmp_path / "broken"), fault="scorer")[0]
    assert told(broken) == told(without)
    assert scores(broken) == {PICTURES: None, OWN: None, "failed": 2, "failed_questions": 0}
    assert "no score of mine, training goes on: ZeroDivisionError: a planted defect of a scorer" in broken.warnings[1]
    assert answers(tmp_path / "broken") == answers(alone[0])  # nothing of them is lost


@pytest.mark.exhaustive
def test_a_training_that_noticed_would_be_seen(tiny, alone, pools, tmp_path):
    line = words(tiny, tmp_path / "touched", evaluation__interval=1)
    touched = pools[1].run(runs.train, words=line, fault="touched")[0]
    assert all(mine != theirs for mine, theirs in zip(told(touched), told(alone[1]), strict=True))


@pytest.mark.exhaustive
def test_adapters_are_asked_with_the_weights_they_change(tiny, alone, pools, tmp_path):
    ranks = {f"adapter__{part}_rank": 4 for part in ("llm", "backbone", "projector")}
    changes = {"adapter__kind": "lora", "optimizer__lr": 0.03, "optimizer__warmup_ratio": 0.0, **ranks}
    (one,) = pools[1].run(runs.train, words=words(tiny, tmp_path / "one", **changes))
    two = pools[2].run(runs.train, words=words(tiny, tmp_path / "two", **changes, **LAYOUTS["tp2_sp"]))
    assert answers(tmp_path / "one") == answers(tmp_path / "two") != answers(alone[0])
    assert scores(one)["failed"] == scores(two[0])["failed"] == 0
    assert_as_the_tool(tiny, tmp_path / "one", tmp_path)


def test_strides_and_a_bound_of_time(tiny, alone, pools, tmp_path):
    changes: dict[str, Any] = {"train__train_steps": 1, "evaluation__samples": 1, "evaluation__benchmarks": PICTURES}
    line = words(tiny, tmp_path / "run", **changes, evaluation__strides="1/2,64")
    (row,) = pools[1].run(runs.train, words=line)[0].rows
    both = [
        runs.answers(tmp_path / "run/evaluation/iter_0000001" / f"stride_{one}" / PICTURES) for one in ("1-2", "64")
    ]
    assert [row[f"evaluation/{PICTURES}/stride_{one}"] for one in ("1-2", "64")] == [0, 0] and row[
        "evaluation/failed"
    ] == 0
    assert len(both[0]) == 1 and [*both[0]] == [*both[1]]
    line = words(tiny, tmp_path / "short", **changes, evaluation__minutes=1e-4)
    seen = pools[1].run(runs.train, words=line)[0]
    assert seen.rows[0]["evaluation/failed"] == 1 and f"evaluation/{PICTURES}" not in seen.rows[0]
    assert "1 questions were not asked, for evaluation.minutes was over" in seen.warnings[0]


@pytest.mark.parametrize("name", ["tp2_sp", pytest.param("pp2", marks=pytest.mark.exhaustive)])
def test_one_rank_without_memory_in_an_exchange_ends_no_run(tiny, alone, pools, tmp_path, name):
    line = words(tiny, tmp_path / "run", evaluation__interval=1, **LAYOUTS[name])
    found = pools[2].run(runs.train, words=line, fault="memory")
    assert [row["evaluation/failed"] for row in found[0].rows] == [1, 0]
    assert f"after step 1: no score of {PICTURES}" in found[0].warnings[0]
    assert "rank 1: OutOfMemoryError: CUDA out of memory" in found[0].warnings[0]
    assert f"evaluation/{OWN}" in found[0].rows[0]  # what comes after it is asked
    assert scores(found[0]) == EXPECTED and answers(tmp_path / "run") == answers(alone[0])


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_run_that_ends_in_an_evaluation_goes_on_with_its_answers(tiny, alone, pools, tmp_path, how):
    line = words(tiny, tmp_path / "run")
    ended = pools[1].run(runs.train, words=line, fault=how)[0]
    before = answers(tmp_path / "run")
    assert len(before[PICTURES]) == {"killed": 1, "stopped": 2}[how] and not before[OWN]
    assert len(ended.rows) == {"killed": 1, "stopped": 2}[how]  # a request to stop saves what has been trained
    assert "evaluation/failed" not in ended.rows[-1] and ended.warnings == []
    resumed = pools[1].run(runs.train, words=line)[0]
    assert told(resumed)[:2] == told(alone[1])[:2] and scores(resumed) == EXPECTED
    assert answers(tmp_path / "run") == answers(alone[0])
    lines = (tmp_path / "run" / "evaluation" / "iter_0000002" / PICTURES / "answers-00000.jsonl").read_text()
    assert len(lines.splitlines()) == SAMPLES  # none was asked twice
