"""Heat maps bin as the scorer does; series by length and stride hold the numbers of their runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from megatron_v2pe.evaluate.families.mm_niah.summary import summarise
from megatron_v2pe.evaluate.report.needle_grids import Needle, NeedleGrid, grid_of, mean_of
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import Score
from megatron_v2pe.evaluate.report.series import length_order, long_grid, points, stride_grids, task_grids

TASK = "retrieval-image-test"


def samples(number=400, seed=0):
    draw = random.Random(seed)
    lengths = [500, 999, 1000, 1001, 3999, 12000, 47999, 64000, 90000, 127_999, 128_000, 300_000, 1_000_000]
    depths = [0.0, 0.1, 0.2, 0.39, 0.4, 0.6, 0.8, 0.99, 1.0]
    items = [
        {"task": TASK, "context_length": draw.choice(lengths), "placed_depth": draw.choice(depths)}
        for _ in range(number)
    ]
    scores = [draw.choice([0.0, 0.5, 1.0]) for _ in items]
    return items, scores


@pytest.mark.parametrize("mode", ["reference", "corrected"])
@pytest.mark.parametrize("number", [5, 40, 400])
def test_rows_are_those_of_the_scorer(mode, number):
    items, scores = samples(number, seed=number)
    summary = summarise(items, [{"score": score} for score in scores], mode)
    grid = grid_of(
        [Needle(i["context_length"], i["placed_depth"], s) for i, s in zip(items, scores, strict=True)], mode
    )
    ours = {name: grid.row_score(row, mode) for row, name in enumerate(grid.lengths)}
    if mode == "reference":
        theirs = dict(
            zip(summary["scores_test.json"]["context_ranges"], summary["scores_test.json"][TASK], strict=True)
        )
        assert {name: value or 0.0 for name, value in ours.items()} == pytest.approx(
            {name: 100 * value for name, value in theirs.items()}, abs=1e-4
        )
        assert sum(map(sum, grid.counts)) == sum(item["context_length"] >= 1000 for item in items)
    else:
        theirs = summary["tasks"][TASK]["by_context"]
        assert {name: value for name, value in ours.items() if value is not None} == pytest.approx(
            {name: 100 * value for name, value in theirs.items()}
        )
        assert sum(map(sum, grid.counts)) == number


def test_means_weigh_tasks_alike_and_leave_out_empty_cells():
    one = NeedleGrid(("1k", "2k"), ((100.0, None), (None, None)), ((9, 0), (0, 0)))
    other = NeedleGrid(("2k", "<1k"), ((40.0, 20.0), (None, 10.0)), ((1, 1), (0, 1)))
    wide = [
        NeedleGrid(g.lengths, tuple((*v, None, None, None) for v in g.values), tuple((*c, 0, 0, 0) for c in g.counts))
        for g in (one, other)
    ]
    mean = mean_of(wide)
    assert mean.lengths == ("<1k", "1k", "2k")
    assert [row[:2] for row in mean.values] == [(None, 10.0), (100.0, None), (40.0, 20.0)]
    assert mean_of([wide[0], wide[0]]).counts[0][:2] == (18, 0)
    assert (
        mean_of([grid_of([Needle(1000, 0, 1)], "corrected"), grid_of([Needle(1500, 0, 0)], "corrected")]).values[0][0]
        == 50
    )


def score(value, needles=(), **changes):
    return Score(value, "answers", 4, 0, 0, published=4, needles=tuple(needles), **changes)


def run(name, stride, checkpoint="c", **settings):
    version = "default" if stride == "default" else "v2pe_fix"
    told = {"checkpoint": checkpoint, "rope_pos_id_version": version, "rope_pos_id_stride": stride, **settings}
    return EvaluationRun(name, Path(name), told, "-", ())


def scores_of(**by_run):
    return {mode: by_run for mode in ("reference", "corrected")}


def test_long_vqa_is_a_mean_over_tasks_and_says_of_how_many():
    mine = {"longvqa_32k_gqa": score(40.0), "longvqa_32k_dvqa": score(60.0), "longvqa_64k_gqa": score(None)}
    (point,) = points([run("a", "64")], scores_of(a=mine), "reference")
    assert (point.suite, point.length, point.value, point.parts, point.of) == ("Long-VQA", "32k", 50.0, 2, 17)
    assert point.marks == "p" and point.questions == 8


def test_needles_by_length():
    mine = {
        "mmniah_test_retrieval_image": score(
            1.0, [Needle(1000, 0.1, 1.0), Needle(2500, 0.1, 0.0), Needle(2500, 0.9, 1.0)]
        ),
        "mmniah_test_counting_text": score(1.0, [Needle(2500, 0.5, 1.0)]),
        "mmniah_long_1m": score(70.0, [Needle(900_000, 0.5, 0.7)]),
    }
    found = {(p.suite, p.length): p for p in points([run("a", "64")], scores_of(a=mine), "corrected")}
    assert found["MM-NIAH test", "1k"].value == 100.0 and found["MM-NIAH test", "1k"].parts == 1
    assert found["MM-NIAH test", "2k"].value == 75.0 and found["MM-NIAH test", "2k"].of == 6
    assert found["MM-NIAH long", "1M"].value == 70.0 and len(found) == 3
    reference = {(p.suite, p.length): p for p in points([run("a", "64")], scores_of(a=mine), "reference")}
    assert reference["MM-NIAH test", "2k"].value == pytest.approx((20 + 20) / 2)  # empty cells count
    assert set(task_grids(mine, "test", "corrected")) == {"retrieval-image", "counting-text"}
    assert long_grid(mine, "reference").lengths == ("1M",) and long_grid({}, "reference") is None


def test_strides_of_one_checkpoint_are_compared():
    runs = [run("a", "64"), run("b", "default"), run("c", "8"), run("d", "8"), run("e", "16", checkpoint="other")]
    by_run = {
        name: {"longvqa_32k_gqa": score(value), "longvqa_64k_gqa": score(value + 1)}
        for name, value in zip("abcde", (10.0, 20.0, 30.0, 40.0, 50.0), strict=True)
    }
    del by_run["b"]["longvqa_64k_gqa"]
    (grid,) = stride_grids(runs, points(runs, scores_of(**by_run), "reference"))
    assert grid.strides == ("8 (c)", "8 (d)", "64", "default") and grid.lengths == ("32k", "64k")
    assert grid.values == ((30.0, 31.0), (40.0, 41.0), (10.0, 11.0), (20.0, None)) and grid.checkpoint == "c"
    same = [run("a", "64"), run("b", "64")]
    assert stride_grids(same, points(same, scores_of(**by_run), "reference")) == []


def test_lengths_are_sorted_by_tokens():
    assert sorted(["1M", "512k", "1k", "<1k", "64k"], key=length_order) == ["<1k", "1k", "64k", "512k", "1M"]
