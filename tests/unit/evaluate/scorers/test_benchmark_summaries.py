"""What is computed of many items: ChartQA's splits, MileBench's groups, MMMU's disciplines, SEED, MVBench, Long-VQA."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.long_vqa.scorer import LENGTHS, TASKS, metric_of
from megatron_v2pe.evaluate.families.milebench.scorer import GROUPS, SETS, group_means, image_level, kind_of
from megatron_v2pe.evaluate.families.mmmu.scorer import DISCIPLINES, SUBJECTS, join_answers
from megatron_v2pe.evaluate.families.videos.scorer import TASKS as VIDEO_TASKS
from megatron_v2pe.evaluate.scorer_names import SCORERS


def test_chartqa_is_the_mean_of_its_splits():
    items = [{"prediction": "x", "answers": "x", "split": "human"}] + [
        {"prediction": text, "answers": "x", "split": "augmented"} for text in "xyyy"
    ]
    assert SCORERS["chartqa"].summary(items) == {"accuracy": 0.4, "human": 1.0, "augmented": 0.25, "average": 0.625}
    assert SCORERS["chartqa"].headline(items) == 62.5


def test_milebench_has_29_sets_in_three_groups_and_one_alone():
    assert len(SETS) == len(set(SETS)) == 29
    assert {name: len(members) for name, members in GROUPS.items()} == {"T": 13, "S": 13, "NI": 2}
    assert [image_level(images) for images in (2, 5, 6, 31, 32)] == ["Few", "Few", "Medium", "Medium", "Many"]


def test_milebench_groups_are_means_of_sets():
    scores = dict.fromkeys(SETS, 0.5) | {"ALFRED": 0.5 + 0.13, "TextNeedleInAHaystack": 1.0}
    assert group_means(scores) == pytest.approx({"T": 0.5, "S": 0.51, "NI": 0.75, "Avg": 1.76 / 3})
    del scores["TQA"]
    assert group_means(scores).keys() == {"T", "NI"}


def test_milebench_of_all_sets():
    items = [
        {
            "dataset": name,
            "kind": kind_of(name, "open-ended"),
            "prediction": "x",
            "answer": "x" if name != "TQA" else "y",
        }
        for name in SETS
    ]
    assert SCORERS["milebench"].headline(items, "corrected") == pytest.approx(100 * (1 + 12 / 13 + 1) / 3)
    assert SCORERS["milebench"].headline(items) == pytest.approx(100 * (1 + 12 / 13 + 1) / 3, abs=1e-4)


def test_how_milebench_sets_are_scored():
    assert [kind_of(name, "multi-choice") for name in ("ImageNeedleInAHaystack", "MMCoQA", "TQA")] == [
        "needle",
        "mmcoqa",
        "multichoice",
    ]
    with pytest.raises(DataError, match="MileBench TQA: question_type 'essay'"):
        kind_of("TQA", "essay")
    with pytest.raises(DataError, match="none of the choices"):
        SCORERS["milebench"].judge(
            {"kind": "multichoice", "prediction": "A", "answer": "x", "choices": ["y"]}, "corrected"
        )


def test_mmmu_by_subject_and_discipline():
    assert len(SUBJECTS) == 30 and len(DISCIPLINES) == 6
    answers = {
        f"validation_{subject}_{number}": {"question_type": "multiple-choice", "ground_truth": "A"}
        for subject in ("Art", "Art_Theory", "Math")
        for number in (1, 2)
    }
    items = join_answers([{"data_id": name, "prediction": "B" if "Math" in name else "A"} for name in answers], answers)
    summary = SCORERS["mmmu_full"].summary(items)
    assert summary["Overall-Art and Design"] == {"num": 4, "acc": 1.0}
    assert summary["Math"] == {"num": 2, "acc": 0.0}
    assert summary["Overall"] == {"num": 6, "acc": 0.667}
    assert summary["Overall-Business"] == {"num": 0, "acc": 0}
    assert SCORERS["mmmu_full"].headline(items) == pytest.approx(200 / 3)
    with pytest.raises(DataError, match="1 of 1 questions have no answer, the first is validation_Art_9"):
        join_answers([{"data_id": "validation_Art_9", "prediction": "A"}], answers)
    stray = [{**items[0], "data_id": "validation_Alchemy_1"}]
    assert SCORERS["mmmu_full"].summary(stray)["Overall"]["num"] == 0
    with pytest.raises(DataError, match="Alchemy are none of the thirty subjects"):
        SCORERS["mmmu_full"].summary(stray, "corrected")


def test_seed_without_videos():
    items = [{"prediction": "A", "answer": answer, "question_type_id": 9} for answer in "AAB"]
    assert SCORERS["seed"].headline(items) == 66.67
    assert "Video accuracy" not in SCORERS["seed"].summary(items)
    with pytest.raises(DataError, match="question_type_id or a data_type"):
        SCORERS["seed"].summary([{"prediction": "A", "answer": "A"}])


def test_mvbench_averages_questions_in_one_form_and_tasks_in_the_other():
    assert len(set(VIDEO_TASKS)) == 20
    items = [{"prediction": "A", "answer": "(A) x", "task_type": "Action Count"}] * 3 + [
        {"prediction": "B", "answer": "(A) x", "task_type": "Action Antonym"}
    ]
    assert SCORERS["mvbench"].headline(items) == 75
    assert SCORERS["mvbench"].headline(items, "corrected") == 50
    with pytest.raises(DataError, match="MVBench answer 'x'"):
        SCORERS["mvbench"].judge({"prediction": "A", "answer": "x"}, "corrected")


def test_longvqa_tasks_and_their_mean():
    assert len(TASKS) == 17 and len(LENGTHS) == 5
    assert [metric_of(task) for task in ("gqa", "svqa", "deepform", "infovqa", "okvqa", "textcaps", "x")] == [
        "RACC",
        "EACC",
        "F1",
        "ANLS",
        "TEXTVQA",
        "BLEU4",
        "RACC",
    ]
    items = [{"task": "svqa", "prediction": text, "answer": "A"} for text in "AB"]
    items += [{"task": "docvqa", "prediction": "abcd", "answer": "abce"}]
    assert SCORERS["longvqa"].summary(items) == {
        "svqa": {"metric": "EACC", "score": 50.0},
        "docvqa": {"metric": "ANLS", "score": 75.0},
    }
    assert SCORERS["longvqa"].headline(items) == 62.5


def test_f1_pairs_answers_of_one_question_once():
    pairs = [("q", "a"), ("q", "b"), ("p", "c")]
    items = [
        {"metric": "F1", "id": key, "prediction": "a" if key == "q" else text, "answer": text} for key, text in pairs
    ]
    # q: both predictions are a, one true answer is; p: right
    assert SCORERS["longvqa_metric"].summary(items) == {"F1": pytest.approx(200 / 3)}


def test_metrics_that_are_not_offered_are_named():
    with pytest.raises(DataError, match="Long-VQA metric 'SPICE': it is one of ACC, F1"):
        SCORERS["longvqa_metric"].score({"metric": "SPICE", "prediction": "x", "answer": "x"})


def test_kinds_that_only_read_have_no_number():
    with pytest.raises(DataError, match="has no number of its own"):
        SCORERS["longvqa_rectify"].headline([{"task": "gqa", "prediction": "x"}])
    with pytest.raises(DataError, match="no `answer` to compare with"):
        SCORERS["gqa_convert"].score({"prediction": "x"})
