"""The scorers in reference mode equal the published code's own outputs, item by item and in sum."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest

from helpers.shared import shared_path
from megatron_v2pe.evaluate.families.long_vqa import meteor
from megatron_v2pe.evaluate.families.mmmu.scorer import join_answers
from megatron_v2pe.evaluate.scorer_names import SCORERS, scorer_of

KINDS = [
    "anls",
    "chartqa",
    "exact",
    "gqa_convert",
    "longvqa",
    "longvqa_metric",
    "longvqa_rectify",
    "milebench",
    "mm_niah",
    "mmbench",
    "mmmu",
    "mmmu_full",
    "mvbench",
    "pope",
    "scienceqa",
    "seed",
    "stvqa_acc",
    "stvqa_anls",
    "textvqa",
    "vqa_post_process",
]
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def golden():
    items = json.loads(shared_path("golden/scores_items.json").read_text())
    expected = json.loads(shared_path("golden/scores_expected.json").read_text())
    return items, expected


def same(found, expected) -> bool:
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same(found[k], expected[k]) for k in expected)
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, (str, bool)):
        return found == expected
    return isinstance(found, (int, float)) and abs(found - expected) <= TOLERANCE


def is_meteor(item) -> bool:
    return item.get("metric") == "METEOR"


def disagreements(golden, kind: str) -> list[str]:
    """Every number of a kind in which we differ; METEOR has a test of its own."""
    items, expected = golden[0], golden[1][kind]
    found = []
    for line in expected["per_item"]:
        if is_meteor(items[line["index"]]):
            continue
        judgement = scorer_of(kind).judge(items[line["index"]])
        found += [
            f"{kind} {line['index']}: {name} {judgement.get(name)!r}, expected {value!r}"
            for name, value in line.items()
            if name != "index" and not same(judgement.get(name), value)
        ]
    name = scorer_of(kind).name
    members = [item for item in items if item["benchmark"] == name and not is_meteor(item)]
    if kind == "mmmu_full":
        answers = json.loads(shared_path("real/data/mmmu/answer_dict_val.json").read_text())
        members = join_answers(members, answers)
    summary = scorer_of(kind).summary(members)
    aggregate = {name: value for name, value in expected["aggregate"].items() if name != "METEOR"}
    return found if same(summary, aggregate) else [*found, f"{kind}: {summary}, expected {aggregate}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_golden_number(golden, kind):
    assert disagreements(golden, kind) == []


def test_the_kinds_are_those_of_the_golden_items(golden):
    assert sorted(golden[1]) == KINDS
    assert {item["benchmark"] for item in golden[0]} == set(SCORERS)


@pytest.mark.slow
def test_golden_meteor(golden):
    if find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        pytest.skip("METEOR needs the package pycocoevalcap and Java")
    (item,) = filter(is_meteor, golden[0])
    try:
        assert SCORERS["longvqa_metric"].score(item) == pytest.approx(
            golden[1]["longvqa_metric"]["aggregate"]["METEOR"]
        )
    finally:
        meteor.stop()


BREAKS = {
    "textvqa": (
        "families.vqa.scorer",
        "soft_accuracy",
        lambda prediction, answers: min(1.0, answers.count(prediction) / 3),
    ),
    "anls": ("families.documents.scorer", "single_spaced", lambda text: text.lower()),
    "chartqa": ("families.documents.scorer", "TOLERANCE", 0.03),
    "pope": ("families.pope.scorer", "judge_reference", lambda text: "no" if "no" in text.lower() else "yes"),
    "mm_niah": ("families.mm_niah.scorer", "_before_dot", str.lower),
    "milebench": ("families.milebench.choice", "EMPTY", "A"),
    "longvqa": ("families.long_vqa.rectify", "without_ing", lambda word: word),
    "longvqa_rectify": ("families.long_vqa.rectify", "singular", str.lower),
    "longvqa_metric": ("families.long_vqa.captions", "_SMALL", 1e-6),
    "mmmu": ("families.mmmu.scorer", "SEED", 0),
    "mmbench": ("scorers.multiple_choice", "first_letter", lambda prediction, options: prediction.strip()[:1]),
    "mvbench": ("families.videos.scorer", "loose_match", lambda prediction, truth: prediction == truth),
    "vqa_post_process": ("families.vqa.scorer", "_LEADS", ("is ", "the ")),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_planted_mistake_is_seen(golden, kind, monkeypatch):
    module, name, wrong = BREAKS[kind]
    monkeypatch.setattr(f"megatron_v2pe.evaluate.{module}.{name}", wrong)
    assert disagreements(golden, kind) != []
