"""Literal cases of every defect of the published scorers: what the reference form gives, and what the corrected one."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.scorer_names import SCORERS, scorer_of
from megatron_v2pe.evaluate.scorers import ReferenceStopsError

STOPS = "stops"
OPTIONS = {"A": "cat", "B": "dog", "C": "a very big horse"}
ANIMAL = {"options": OPTIONS, "answer": "B"}
CHOICES = {"kind": "multichoice", "answer": "blue car", "choices": ["red car", "blue car", "green (old) car"]}


def case(name, reference, corrected, /, **item):
    return pytest.param(name, item, reference, corrected, id=f"{name}-{item.get('prediction')!r}")


DEFECTS = [
    # the tolerance of ChartQA is relative to the prediction
    case("chartqa", 0, 1, prediction="20", answers="21.02"),
    case("chartqa", 1, 0, prediction="21.02", answers="20"),
    case("chartqa", 0, 1, prediction="0.0", answers="0"),
    case("chartqa", 0, 1, prediction="0", answers="0.00%"),
    case("chartqa", 0, 1, prediction="inf", answers="inf"),
    case("chartqa", 0, 1, prediction="Blue", answers=" blue "),
    # lengths of raw texts
    case("docvqa", 1 - 1 / 9, 1 - 1 / 3, prediction="  abd    ", answers=["abc"]),
    case("docvqa", STOPS, 0, prediction=None, answers=["abc"]),
    case("stvqa_anls", STOPS, 1, prediction="", answers=[""]),
    # ten people or nobody
    case("textvqa", STOPS, 1, prediction="yes", answers=["Yes."]),
    case("textvqa", STOPS, 2 / 3, prediction="yes", answers=["yes", "yes", "yes"]),
    case("textvqa", 0, 1, prediction="Im", answers=["I'm"] * 10),
    case("textvqa", 0, 1, prediction="x" + "." * 40, answers=["x"] * 10),
    # a dot at the end
    case("ocrvqa", 0, 1, prediction="Cat.", answers=["cat"]),
    case("gqa_convert", 0, 1, prediction=" Dog", answer="dog"),
    case("vqa_post_process", 0, 1, prediction="a panda bear", answer="panda bear"),
    # yes and no
    case("pope", 0, 1, prediction="NO", answer="no"),
    case("pope", 0, 1, prediction="no!", answer="no"),
    case("pope", 1, 0, prediction="", answer="yes"),
    case("pope", 1, 0, prediction="maybe", answer="yes"),
    case("pope", 0, 1, prediction="Yes, but it is not near", answer="yes"),
    # first letters
    case("mmbench", STOPS, 0, prediction="", **ANIMAL),
    case("mmbench", 0, 1, prediction="(B)", **ANIMAL),
    case("mmbench", 0, 1, prediction="b", **ANIMAL),
    case("mmbench", 0, 1, prediction="A dog", **ANIMAL),
    case("mmbench", 1, 0, prediction="Both", **ANIMAL),
    case("mmbench", 0, 1, prediction="The answer is B.", **ANIMAL),
    case("mmbench", 1, 0, prediction="it is a hotdog", **ANIMAL),
    case("mmbench", STOPS, 1, prediction="the dog 2", options={"A": 1.0, "B": "dog"}, answer="B"),
    case("mmbench", 0, 1, prediction="答案是B", **ANIMAL),
    case("mmbench", 0, 1, prediction="Ｂ", **ANIMAL),
    case("scienceqa", STOPS, 0, prediction="  ", **ANIMAL),
    case("mmmu", 0, 1, prediction="B. dog", question_type="multiple-choice", **ANIMAL),
    case("mmmu", 1, 0, prediction="nothing", question_type="multiple-choice", options=OPTIONS, answer="C"),
    case("mmmu", 0, 1, prediction="It is x = 4. Thus y is 5. Done", question_type="open", answer="4"),
    case("mmmu_full", 0, 1, prediction="(B)", question_type="multiple-choice", data_id="validation_Art_1", **ANIMAL),
    case("seed", STOPS, 0, prediction="", answer="A", question_type_id=1),
    case("seed", 0, 1, prediction="(B)", answer="B", question_type_id=1),
    case("seed", 1, 0, prediction="Both are", answer="B", question_type_id=1),
    # part of `(a)`
    case("mvbench", 1, 0, prediction="", answer="(A) The man.", task_type="x"),
    case("mvbench", 1, 0, prediction=".", answer="(A) The man.", task_type="x"),
    case("mvbench", 1, 0, prediction="a cat", answer="(A) The man.", task_type="x"),
    case("mvbench", 0, 1, prediction="The man", answer="(A) The man.", task_type="x"),
    case("mvbench", STOPS, 1, prediction="A", answer="(A)", task_type="x"),
    # needles
    case("mm_niah", 0, 1, prediction="(C)", answer=2),
    case("mm_niah", STOPS, 0, prediction="²", answer=2),
    case("mm_niah", 1, 0.5, prediction="[1, 2, 3, 4]", answer=[1, 2]),
    case("mm_niah", 0, 1, prediction="The counts are [1, 2].", answer=[1, 2]),
    case("mm_niah", 1, 0, prediction="[true]", answer=[1]),
    case("mm_niah", 1, 0, prediction="whatever", answer="the"),
    case("mm_niah", STOPS, 0, prediction=None, answer="x"),
    # MileBench
    case("milebench", 1, 0, prediction="", kind="multichoice", answer="c", choices=["a", "b", "c"]),
    case("milebench", 0, 1, prediction="The answer is B", **CHOICES),
    case("milebench", 0, 1, prediction="It costs $5", kind="multichoice", answer="$5", choices=["$4", "$5"]),
    case("milebench", 0, 1, prediction="it is red fox here", kind="needle", answer="red fox"),
    case("milebench", 1, 0, prediction="12ab34", kind="mmcoqa", answer="2ab3"),
    case("milebench", 1, 0.8, prediction="the the cat", kind="rouge", answer="the cat"),
    # Long-VQA
    case("longvqa", 100, 0, task="gqa", prediction="North", answer="November"),
    case("longvqa", 100, 0, task="svqa", prediction="Apple", answer="A"),
    case("longvqa", 0, 100, task="svqa", prediction="(b) a cat", answer="B"),
    case("longvqa", 0, 100, task="chartqa", prediction="0", answer="0.0"),
    case("longvqa", 0, 100, task="tabfact", prediction="YES.", answer="Yes"),
    case("longvqa", 0, 100, task="deepform", prediction="$1,200", answer="1200"),
    case("longvqa", 100, 0, task="gqa", prediction="rid", answer="riding"),
    case("longvqa", STOPS, 100, task="docvqa", prediction="", answer=""),
    case("longvqa", STOPS, 100, task="docvqa", prediction="x", answer=["y", "x"]),
    case("longvqa_metric", STOPS, 400 / 9, metric="TEXTVQA", prediction="x", answer=["x", "x", "y"]),
    case("longvqa_metric", 0, 100, metric="EACC", prediction="A", answer="a"),
]


@pytest.mark.parametrize(("name", "item", "reference", "corrected"), DEFECTS)
def test_defects_stand_side_by_side(name, item, reference, corrected):
    scorer = SCORERS[name]
    if reference == STOPS:
        assert "error" in scorer.judge(item)
        with pytest.raises(ReferenceStopsError, match=f"{name}: the published evaluation stops here with"):
            scorer.score(item)
    else:
        assert scorer.score(item, "reference") == pytest.approx(reference, abs=1e-3)
    assert scorer.score(item, "corrected") == pytest.approx(corrected)


def test_items_at_which_the_reference_stops_are_left_out_and_named():
    items = [{"prediction": text, **ANIMAL} for text in ("B", "A", "")]
    assert SCORERS["mmbench"].summary(items) == {"accuracy": 0.5, "error": "IndexError: string index out of range"}
    assert SCORERS["mmbench"].summary(items, "corrected") == {"accuracy": pytest.approx(1 / 3)}


def test_a_category_without_a_predicted_yes():
    items = [{"prediction": "no", "answer": answer, "category": "random"} for answer in ("yes", "no")]
    assert SCORERS["pope"].summary(items)["random"]["error"].startswith("ZeroDivisionError")
    with pytest.raises(DataError, match="there is no F1 of random"):
        SCORERS["pope"].headline(items)
    assert SCORERS["pope"].headline(items, "corrected") == 0


@pytest.mark.parametrize("name", SCORERS)
def test_a_missing_field_and_no_items_are_named(name):
    with pytest.raises(DataError, match="no field '(prediction|answers?|task|metric)'"):
        SCORERS[name].judge({"question": "?"})
    with pytest.raises(DataError, match=f"{name}: there are no items"):
        SCORERS[name].summary([])


def test_another_mode_and_another_name_are_refused():
    with pytest.raises(DataError, match="mode 'strict'"):
        SCORERS["pope"].judge({"prediction": "no"}, "strict")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no scorer is called 'popo'; there are ai2d, anls"):
        scorer_of("popo")


def test_benchmarks_that_share_a_scorer():
    assert {
        name: scorer_of(name).name for name in ("infovqa", "vizwiz", "okvqa", "vqav2", "ai2d", "gqa", "ccbench")
    } == {
        "infovqa": "docvqa",
        "vizwiz": "textvqa",
        "okvqa": "textvqa",
        "vqav2": "textvqa",
        "ai2d": "ocrvqa",
        "gqa": "gqa_convert",
        "ccbench": "mmbench",
    }
