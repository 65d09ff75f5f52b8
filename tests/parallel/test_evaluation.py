"""Evaluation over ranks: who decodes which images; what goes wrong on one rank is one question's error on all."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from helpers import evaluation
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.evaluate.answers import AnswerLog
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark
from megatron_v2pe.workshop.synthetic.small_data import write_checkpoint_copy
from megatron_v2pe.workshop.worker_pool import WorkerError, WorkerPool

NAME = "longvqa_32k_gqa"  # two images a question
LAYOUTS = {
    "dp2": ParallelConfig(),
    "cp2": ParallelConfig(context_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2_replicated": ParallelConfig(tensor_model_parallel_size=2, vision_parallel="replicated"),
}


@pytest.fixture(scope="module")
def case(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    hf_to_mcore(write_checkpoint_copy(golden / "reference_checkpoint", folder / "hf"), folder / "megatron")
    write_benchmark(folder / "data", NAME)
    return evaluation.Case(folder / "megatron", folder / "data", folder / "out", NAME)


@pytest.fixture
def fresh(case, tmp_path):
    """A case with a copy of the data that may be damaged."""
    shutil.copytree(case.root, tmp_path / "data")
    return replace(case, root=tmp_path / "data", out=tmp_path / "out")


@pytest.fixture(scope="module")
def alone(case, pools):
    return pools[1].run(evaluation.run, case=case)[0]


def texts(seen):
    return {name: (answer.answer, answer.num_tokens, answer.error) for name, answer in seen.answers.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_answers_and_no_image_decoded_in_vain(fresh, alone, pools, name):
    assert all(answer.error is None for answer in alone.answers.values()) and len(alone.answers) >= 3
    first, second = pools[2].run(evaluation.run, case=replace(fresh, layout=LAYOUTS[name]))
    assert texts(first) == texts(second) == texts(alone)
    everything = Counter(alone.opened)
    if name == "pp2":
        assert Counter(first.opened) == everything and second.opened == []
    elif name == "tp2":  # one tower of two ranks
        assert Counter(first.opened) == Counter(second.opened) == everything
    elif name == "dp2":
        assert Counter(first.opened) + Counter(second.opened) == everything
    else:  # an image of several tiles may be met by both
        shared = Counter(first.opened) + Counter(second.opened)
        assert set(shared) == set(everything)
        assert max(len(first.opened), len(second.opened)) < len(alone.opened)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dp2", "little free"),
        ("cp2", "little free"),
        ("cp2", "no room for the cache"),
        ("pp2", "no room for the cache"),
    ],
)
def test_too_little_memory_on_one_rank_is_one_questions_error(fresh, alone, pools, name, fault):
    layout = replace(fresh, layout=LAYOUTS[name])
    seen = pools[2].run(evaluation.run, case=replace(layout, fault=fault))[0]
    failed = [answer for answer in seen.answers.values() if answer.error]
    assert len(failed) == 1 and len(seen.answers) == len(alone.answers)
    expected = "out of memory: the prompt needs at least" if fault == "little free" else "can't allocate memory"
    assert failed[0].error.startswith("MemoryShortageError: ") and expected in failed[0].error
    again = pools[2].run(evaluation.run, case=layout)[0]  # with more memory
    assert texts(again) == texts(alone)


@pytest.mark.parametrize("name", ["cp2", "pp2", "tp2"])
def test_an_image_that_only_one_rank_reads_is_one_questions_error(fresh, alone, pools, name):
    """Its header is whole: only who decodes it can know."""
    path = sorted(fresh.root.rglob("*.png"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    layout = replace(fresh, layout=LAYOUTS[name], batch_size=2)
    seen = pools[2].run(evaluation.run, case=layout)[0]
    failed = [answer for answer in seen.answers.values() if answer.error]
    assert len(failed) == 1 and f"{path}: damaged image" in failed[0].error
    again = pools[2].run(evaluation.run, case=replace(layout, retry="none"))[0]
    assert again.opened == [] and texts(again) == texts(seen)
    path.write_bytes(whole)
    again = pools[2].run(evaluation.run, case=layout)[0]
    assert texts(again) == texts(alone)


@pytest.mark.parametrize("name", [None, "cp2", "dp2"])
def test_batches_and_what_is_prepared_ahead_change_no_answer(fresh, alone, pools, name):
    """Questions of like length together, images read by threads: the same answers, no image read twice on a rank."""
    layout = LAYOUTS.get(name, ParallelConfig())
    case = replace(fresh, layout=layout, batch_size=2, image_workers=2)
    seen = pools[1 if name is None else 2].run(evaluation.run, case=case)
    assert texts(seen[0]) == texts(alone)
    assert max(seen[0].batches) == 2 or name == "dp2"
    for one in seen:
        assert max(Counter(one.opened).values(), default=1) == 1
    assert not list(case.out.glob("asking-*"))


def test_a_batch_that_does_not_fit_is_halved(fresh, alone, pools):
    case = replace(fresh, batch_size=4, image_workers=1, fault="memory for one")
    seen = pools[1].run(evaluation.run, case=case)[0]
    assert texts(seen) == texts(alone)
    assert len(alone.answers) == 4 and seen.batches == [4, 2, 1, 1, 2, 1, 1]


def test_a_damaged_image_read_ahead_is_one_questions_error(fresh, alone, pools):
    path = sorted(fresh.root.rglob("*.png"))[-1]
    path.write_bytes(path.read_bytes()[:-30])
    seen = pools[1].run(evaluation.run, case=replace(fresh, batch_size=4, image_workers=2))[0]
    failed = [answer for answer in seen.answers.values() if answer.error]
    assert len(failed) == 1 and f"{path}: damaged image" in failed[0].error
    good = {name: text for name, text in texts(alone).items() if name != failed[0].id}
    assert good == {name: text for name, text in texts(seen).items() if name != failed[0].id}


@pytest.mark.slow
def test_memory_that_runs_out_between_ranks_ends_the_run_and_is_remembered(fresh, alone, pools):
    """Alone a rank goes on; of two the other would wait for ever."""
    one = pools[1].run(evaluation.run, case=replace(fresh, fault="no memory while attending"))[0]
    assert [answer.stopped for answer in one.answers.values()].count("error") == 1
    two = replace(fresh, out=fresh.out.with_name("two"), layout=LAYOUTS["cp2"])
    pool = WorkerPool(2)
    try:
        with pytest.raises(WorkerError, match="can't allocate memory"):
            pool.run(evaluation.run, case=replace(two, fault="no memory while attending"))
    finally:
        pool.close()
    (asked,) = json.loads((two.out / "asking-00000.json").read_text())["asking"]
    assert asked not in AnswerLog(two.out).answers and len(AnswerLog(two.out).answers) == 1
    seen = pools[2].run(evaluation.run, case=two)[0]
    assert texts(seen) == texts(alone)
    assert list(seen.answers)[-1] == asked  # last, so that it would cost no other question's answer
    assert not list(two.out.glob("asking-*"))
