"""Benchmarks on real questions and images, below the shared folder (not part of the repository)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from helpers.opened_images import open_images
from helpers.shared import shared_path
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.families.videos.frames import sample_frames, video_images


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def real(monkeypatch) -> Path:
    """Start in the folder of the real data, as its README asks."""
    folder = shared_path("real")
    monkeypatch.chdir(folder)
    return folder


COUNTS = {
    "chartqa_human": 92,
    "chartqa_augmented": 47,
    "scienceqa": 60,
    "docvqa_val": 12,
    "mmbench_dev": 20,
    "mmbench_dev_cn": 20,
    "ccbench": 14,
    "mmmu_val": 45,
}


@pytest.mark.parametrize("name", COUNTS)
def test_questions_and_images(name, real, cache):
    if name == "mmmu_val":
        pytest.importorskip("pyarrow", reason="the published files are Parquet: eval extra")
    benchmark = create(name, cache=cache)
    benchmark.check(Path("."))
    questions = list(benchmark.questions(Path(".")))
    assert len(questions) == COUNTS[name]
    for question in questions:
        assert question.turns[0][1].count("<image>") == len(question.images)
        for image in open_images(question.images):
            assert image.mode == "RGB" and min(image.size) > 8


def test_every_chart_is_asked_about(real):
    charts = set(Path("data/chartqa/ChartQA Dataset/test/png").glob("*.png"))
    asked = {
        Path(image.path)
        for name in ("chartqa_human", "chartqa_augmented")
        for question in create(name).questions(Path("."))
        for image in question.images
    }
    assert asked == charts and len(charts) == 66


def test_pope_is_complete_but_for_its_images(real):
    benchmark = create("pope")
    with pytest.raises(DataError, match=r"data/pope/val2014: unpack http\S+val2014\.zip below data/coco and link"):
        benchmark.check(Path("."))
    questions = list(benchmark.questions(Path(".")))
    counts = Counter((question.facts["category"], question.facts["answer"]) for question in questions)
    assert counts == {
        ("adversarial", "yes"): 1500,
        ("adversarial", "no"): 1500,
        ("popular", "yes"): 1500,
        ("popular", "no"): 1500,
        ("random", "yes"): 1500,
        ("random", "no"): 1410,
    }


def _linked(tmp_path: Path, folder: Path, **replaced: Path) -> Path:
    """Return a root whose `data/pope` is a folder, files of which may be replaced."""
    pope = tmp_path / "data/pope"
    (pope / "coco").mkdir(parents=True)
    (pope / "llava_pope_test.jsonl").symlink_to(folder / "llava_pope_test.jsonl")
    for category in ("random", "popular", "adversarial"):
        file = f"coco/coco_pope_{category}.json"
        (pope / file).symlink_to(replaced.get(category, folder / file))
    if (folder / "val2014").is_dir():
        (pope / "val2014").symlink_to(folder / "val2014")
    return tmp_path


def test_pope_with_its_images(real, tmp_path):
    root = _linked(tmp_path, real / "data/pope_aokvqa")
    benchmark = create("pope")
    benchmark.check(root)
    questions = list(benchmark.questions(root))
    assert len(questions) == 90
    assert all(open_images(question.images) for question in questions)


def test_pope_refuses_the_labels_of_today(real, tmp_path):
    of_today = real / "data/pope/coco_HEAD_mismatching/coco_pope_random.json"
    root = _linked(tmp_path, real / "data/pope", random=of_today)
    with pytest.raises(DataError, match=r"no label for .*at commit e3e39262|labels have no question"):
        list(create("pope").questions(root))


def test_whole_annotations_without_images(real, tmp_path):
    sources = {
        "chartqa_human": ("chartqa/test_human_full.jsonl", "data/chartqa/test_human.jsonl", 1161),
        "chartqa_augmented": ("chartqa/test_augmented_full.jsonl", "data/chartqa/test_augmented.jsonl", 1212),
        "scienceqa": (
            "scienceqa/scienceqa_test_img_full.jsonl",
            "data/scienceqa/scienceqa_test_img.jsonl",
            2017,
        ),
        "textvqa_val": ("textvqa/textvqa_val.jsonl", "data/textvqa/textvqa_val.jsonl", 81),
    }
    annotations = tmp_path / "data/textvqa/textvqa_val_annotations.json"
    annotations.parent.mkdir(parents=True)
    annotations.symlink_to(real / "annotation_only/textvqa/textvqa_val_annotations.json")
    for name, (source, place, count) in sources.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(real / "annotation_only" / source)
        assert len(list(create(name).questions(tmp_path))) == count


def test_mmmu_agrees_with_the_official_answers(real, cache):
    pytest.importorskip("pyarrow", reason="the published files are Parquet: eval extra")
    import json

    official = json.loads(Path("data/mmmu/answer_dict_val.json").read_text())
    questions = list(create("mmmu_val", cache=cache).questions(Path(".")))
    for question in questions:
        assert question.facts["answer"] == official[question.id]["ground_truth"]
    assert sorted(len(question.images) for question in questions)[-3:] == [4, 5, 5]


def test_the_table_of_mmbench_is_that_of_a_real_submission(real, cache, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="tables need the eval extra")
    pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")
    submitted = openpyxl.load_workbook(
        "reference_predictions/mmbench/mmbench_dev_20230712_llava-v1.5-13b.xlsx", read_only=True
    ).active
    benchmark = create("mmbench_dev", cache=cache)
    questions = list(benchmark.questions(Path(".")))
    path = benchmark.submission(Path("."), [(question, "A") for question in questions], tmp_path)
    written = list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
    rows = submitted.iter_rows(values_only=True)
    assert written[0] == next(rows)
    theirs = {row[0]: row for row in rows}
    shared = [row for row in written[1:] if row[0] in theirs]
    assert len(shared) >= 10
    same = [row for row in shared if (*row[:6], *row[7:]) == (*theirs[row[0]][:6], *theirs[row[0]][7:])]
    assert len(same) >= len(shared) - 1  # row 1 lost the indentation of its code on one side


# Frames that PyAV decodes; decord, which the published code uses, counts 311 in the first.
@pytest.mark.parametrize(
    "name, frames, size", [("flipping_a_pancake.mkv", 310, (426, 240)), ("playing_guitar.mp4", 300, (470, 320))]
)
def test_frames_of_real_videos(real, name, frames, size):
    images = video_images(Path("video") / name, None)
    assert [image.frame for image in images] == sample_frames(30.0, 0, frames - 1, None)
    assert {image.size for image in open_images(images)} == {size}
    clip = video_images(Path("video") / name, (2.0, 4.0))
    assert (clip[0].frame, clip[-1].frame) == (61, 117)
