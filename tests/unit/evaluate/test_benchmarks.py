"""Every registered benchmark on a made-up set in its exact format: what is asked, what is scored, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.opened_images import open_images
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark import Question
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

SCORED = [name for name in BENCHMARKS if create(name).scorer]
UNSCORED = [name for name in BENCHMARKS if create(name).scorer is None]
# One of each family, where what is tested does not depend on the member.
ONE_OF_EACH = [
    name
    for name in BENCHMARKS
    if not name.startswith(("milebench_", "longvqa_", "mmniah_", "mmbench_"))
    or name in ("milebench_tqa", "longvqa_40k_gqa", "mmniah_val_reasoning_image", "mmniah_long_1m", "mmbench_dev_en")
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made_up")
    for name in BENCHMARKS:
        write_benchmark(folder, name)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def right_answer(question: Question) -> str:
    """Say what is right, as a model would."""
    facts = question.facts
    truth: Any = facts["answers"] if "answers" in facts else facts["answer"]
    if facts.get("task", "").startswith("counting"):
        return json.dumps(truth)
    if isinstance(truth, list):
        return max(truth, key=truth.count)
    if isinstance(truth, int):
        return "ABCDEFGH"[truth]
    return truth


@pytest.mark.parametrize("name", BENCHMARKS)
def test_questions(name, root, cache):
    benchmark = create(name, cache=cache)
    benchmark.check(root)
    questions = list(benchmark.questions(root))
    assert 3 <= len(questions) <= 40
    assert max(Counter(question.id for question in questions).values()) == 1
    assert [question for question in benchmark.questions(root)] == questions  # ids and all else are the same each time
    for question in questions:
        assert [role for role, _ in question.turns] == ["human"]
        assert question.turns[0][1].count("<image>") == len(question.images) > 0
        assert len(open_images(question.images)) == len(question.images)
        json.dumps({**question.facts})
        assert json.loads(json.dumps(benchmark.item(question, "an answer")))["prediction"] == "an answer"


@pytest.mark.parametrize("name", SCORED)
def test_right_answers_score_full_and_wrong_ones_nothing(name, root, cache):
    pytest.importorskip("rapidfuzz", reason="scorers need the eval extra")
    from megatron_v2pe.evaluate.scorer_names import scorer_of

    benchmark = create(name, cache=cache)
    questions = list(benchmark.questions(root))
    scorer = scorer_of(str(benchmark.scorer))
    assert scorer.name == benchmark.scorer
    right = [benchmark.item(question, right_answer(question)) for question in questions]
    assert scorer.headline(right, "corrected") == pytest.approx(100, abs=1e-5)
    wrong = [benchmark.item(question, "zzz qqq") for question in questions]
    if name == "pope":
        wrong = [benchmark.item(q, {"yes": "no", "no": "yes"}[q.facts["answer"]]) for q in questions]
    assert scorer.headline(wrong, "corrected") == pytest.approx(0, abs=1e-6)  # BLEU adds 1e-9 to its counts


@pytest.mark.parametrize("name", UNSCORED)
def test_submissions(name, root, cache, tmp_path):
    benchmark = create(name, cache=cache)
    answers = [(question, f"answer {number}") for number, question in enumerate(benchmark.questions(root))]
    if name.startswith("mmbench"):
        pytest.importorskip("openpyxl", reason="tables need the eval extra")
    path = benchmark.submission(root, answers, tmp_path / "out")
    assert path is not None and path.parent == tmp_path / "out" and path.stem == name
    if name.startswith("mmbench"):
        return  # see test_mmbench
    content = json.loads(path.read_text())
    assert len(content) == len(answers)
    first = answers[0][0]
    expected = {
        "docvqa_test": {"questionId": 1000, "answer": "answer 0"},
        "infovqa_test": {"questionId": 1000, "answer": "answer 0"},
        "vqav2_testdev": {"question_id": 1000, "answer": "answer 0"},
        "vizwiz_test": {"image": "000.png", "answer": "answer 0"},
        "mmmu_test": "answer 0",
    }[name]
    assert (content[first.id] if name == "mmmu_test" else content[0]) == expected


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_data_are_named_with_what_to_download(name, tmp_path):
    benchmark = create(name)
    with pytest.raises(DataError) as caught:
        benchmark.check(tmp_path)
    for needed in benchmark.needed:
        assert f"{tmp_path / needed.path}: {needed.obtain}" in str(caught.value)
        assert len(needed.obtain) > 15


def _question_file(benchmark: Any, root: Path) -> Path:
    """Return a file that questions are read from."""
    path = root / benchmark.needed[0].path
    if path.is_dir():
        path = sorted(file for pattern in ("*.jsonl", "*.parquet") for file in path.rglob(pattern))[0]
    return path


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_damaged_line_is_named(name, tmp_path, cache):
    write_benchmark(tmp_path, name, parquet=False)
    benchmark = create(name, cache=cache)
    path = _question_file(benchmark, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], b'{"torn": "\xff\n', *lines[2:]]))
    with pytest.raises(DataError, match=rf"{path}(:2|:1|: not)"):
        list(benchmark.questions(tmp_path))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_another_version_is_named(name, tmp_path, cache):
    write_benchmark(tmp_path, name, parquet=False)
    benchmark = create(name, cache=cache)
    path = _question_file(benchmark, tmp_path)
    text = path.read_text(encoding="utf-8")
    for field in ("question", '"text"', '"conversations"'):
        text = text.replace(field, field.replace("t", "_"))
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="(no '.*', only )|neither"):
        list(benchmark.questions(tmp_path))


@pytest.mark.parametrize("name", ("chartqa_human", "docvqa_val", "seed", "longvqa_32k_gqa", "mmniah_val_counting_text"))
def test_an_id_used_twice_is_refused(name, tmp_path):
    write_benchmark(tmp_path, name)
    benchmark = create(name)
    path = _question_file(benchmark, tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    with pytest.raises(DataError, match=r"\.jsonl:5: id .* was used before, at .*\.jsonl:2"):
        list(benchmark.questions(tmp_path))


def test_another_number_of_questions_is_told(root, caplog):
    with caplog.at_level(logging.WARNING, "megatron_v2pe"):
        list(create("chartqa_human").questions(root))
    assert "chartqa_human: 4 questions; the published file has 1250" in caplog.text


def test_placeholders_and_images_must_be_as_many(tmp_path):
    write_benchmark(tmp_path, "longvqa_32k_gqa")
    path = tmp_path / "dataset/val/long_vqa_32k/val_long_vqa_gqa_16_32.jsonl"
    path.write_text(path.read_text().replace("Image-1: <image>", "Image-1:"))
    with pytest.raises(DataError, match=r"gqa_16_32.jsonl:1: 1 <image> in the text, but 2 images"):
        list(create("longvqa_32k_gqa").questions(tmp_path))


def test_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="mode 'strict'"):
        create("seed", mode="strict")  # pyright: ignore[reportArgumentType]


def test_made_up_sets_are_the_same_for_the_same_seed(tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_benchmark(tmp_path / folder, "scienceqa", seed)
    files = {folder: sorted((tmp_path / folder).rglob("*.*")) for folder in "abc"}
    content = {folder: [path.read_bytes() for path in paths] for folder, paths in files.items()}
    assert content["a"] == content["b"] != content["c"]


def test_images_of_a_table_go_to_the_cache_once(tmp_path):
    data, cache = tmp_path / "data_only", tmp_path / "cache"
    write_benchmark(data, "mmbench_dev_en")
    before = sorted(data.rglob("*"))
    questions = list(create("mmbench_dev_en", cache=cache).questions(data))
    assert len(questions) == 4 and len(list(cache.rglob("*.png"))) == 2  # two rotations of each question
    assert sorted(data.rglob("*")) == before
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    list(create("mmbench_dev_en", cache=cache).questions(data))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == files
    shutil.rmtree(cache)
    assert [question.images for question in create("mmbench_dev_en", cache=cache).questions(data)] == [
        question.images for question in questions
    ]
