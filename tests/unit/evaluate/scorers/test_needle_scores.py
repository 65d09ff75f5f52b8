"""MM-NIAH: how answers are judged, and how scores are sorted by length and depth."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.mm_niah.summary import BINS, TASKS
from megatron_v2pe.evaluate.scorer_names import SCORERS

NIAH = SCORERS["mm_niah"]


@pytest.mark.parametrize(
    ("answer", "prediction", "reference", "corrected"),
    [
        (2, "C", 1, 1),
        (2, "c.", 1, 1),
        (2, "C. foo", 1, 1),
        (2, "2", 1, 1),
        (2, "(C)", 0, 1),
        (2, "**C**", 1, 1),
        (2, "None", 0, 0),
        (0, "The camera is moving left.", 1, 1),
        (1, "right", 1, 1),
        ([1, 2, 3], "[1, 5]", 1 / 3, 1 / 3),
        ([1, 2, 3], "[1,2,3,4]", 1, 3 / 4),
        ([1, 2], "1,2", 0, 0),
        ([1, 2], '```json\n{"a": [1], "b": [2]}\n```', 1, 1),
        ([1, 2], '["1", "2"]', 0, 1),
        ("7", "seven", 1, 1),
        ("New York", "york", 0, 0),
        ("Blue Ridge", "It is the blue ridge.", 1, 1),
        ("cat", "catalog", 0, 0),
        (0, "The camera is moving left, not right.", 1, 1),
        (1, "It is moving right rather than left.", 0, 1),
    ],
)
def test_answers(answer, prediction, reference, corrected):
    item = {"answer": answer, "prediction": prediction}
    assert NIAH.score(item) == pytest.approx(reference)
    assert NIAH.score(item, "corrected") == pytest.approx(corrected)


def sample(task, length, depth, right):
    return {
        "task": task,
        "context_length": length,
        "placed_depth": depth,
        "answer": [1] if "counting" in task else "x",
        "prediction": ("[1]" if "counting" in task else "x") if right else "y",
    }


def test_counting_answers_may_be_json_text():
    item = {"task": "counting-text-val", "answer": "[1, 2]", "prediction": "[1, 2]"}
    assert NIAH.score(item) == NIAH.score(item, "corrected") == 1
    with pytest.raises(DataError, match="MM-NIAH counting answer 'two'"):
        NIAH.score({**item, "answer": "two"})


def test_one_task_by_length_and_depth():
    task = "retrieval-text-val"
    items = [
        sample(task, 999, 0.1, True),
        sample(task, 1000, 0.0, True),
        sample(task, 1999, 0.1, False),
        sample(task, 64_000, 1.0, True),
        sample(task, 70_000, [0.7, 0.9], True),
        sample(task, 70_000, 0.6, False),
    ]
    scores = NIAH.summary(items)["scores_val.json"]
    # 1k: one of two in one of five cells; 64k: two cells of 0.8 and 1.0 right, 0.6 falls into the third fifth
    assert scores[task] == [0.1, *[0.0] * 9, 0.2]
    assert scores["average"] == pytest.approx(0.3 / 11)
    assert scores["weighted_acc"] == [0.5, *[0.0] * 9, pytest.approx(2 / 3)]
    assert scores["sample_number_array"] == [2, *[0] * 9, 3]
    assert scores["weighted_avg_acc"] == pytest.approx(4 / 6)
    assert NIAH.headline(items) == pytest.approx(100 * 0.3 / 11)
    corrected = NIAH.summary(items, "corrected")
    assert corrected["tasks"][task]["by_context"] == {"<1k": 1.0, "1k": 0.5, "64k": pytest.approx(1 / 2)}
    assert corrected["text"] == corrected["overall"] == pytest.approx(2 / 3)


def test_six_tasks_have_an_overall_score_and_kinds():
    items = [sample(f"{task}-test", edge, 0.1, "image" in task) for task in TASKS for edge in BINS]
    scores = NIAH.summary(items)["scores_test.json"]
    assert scores["overall"] == [0.1] * 11
    corrected = NIAH.summary(items, "corrected")
    assert (corrected["image"], corrected["text"], corrected["overall"]) == (1, 0, 0.5)
    assert NIAH.headline(items, "corrected") == 50


def test_long_contexts_have_bins_of_their_own():
    items = [sample("retrieval-image-test-1M", length, 0.5, True) for length in (130_000, 1_000_000)]
    assert NIAH.summary(items, "corrected")["tasks"]["retrieval-image-test-1M"]["by_context"] == {"128k": 1, "1M": 1}
    assert NIAH.summary(items) == {
        "error": "RuntimeError: 'retrieval-image-test-1M' ends with none of rag-val, val, rag-test, test"
    }
    with pytest.raises(DataError, match="the published evaluation stops with RuntimeError: 'retrieval-image-test-1M'"):
        NIAH.headline(items)


def test_a_depth_that_is_none_is_refused():
    with pytest.raises(DataError, match="placed_depth 1.5"):
        NIAH.summary([sample("retrieval-text-val", 1000, 1.5, True)])
