"""What MM-NIAH, MileBench and Long-VQA ask, to the letter of the behaviour document; their order; what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.hand_written_sets import LETTER, SHORT, ask, text_of, write_json, write_lines
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import ImageRef
from megatron_v2pe.evaluate.benchmark_names import create


def _needle(root: Path, name: str, **changes: Any) -> None:
    row = {
        "id": 4,
        "images_list": ["1.png"],
        "context": "Text <image> more.",
        "question": "Which?",
        "answer": "red",
        "meta": {"placed_depth": 0.5, "context_length": 1200, "choices": None, "choices_image_path": None},
    }
    shorter = {**row, "id": 3, "meta": {**row["meta"], "context_length": 900}}
    write_lines(root / f"dataset/benchmark/MM-NIAH/mm_niah_val/annotations/{name}.jsonl", shorter, row | changes)


@pytest.mark.parametrize(
    "name, changes, text, images",
    [
        ("retrieval-text", {}, f"Text <image> more.Which?\n{SHORT}", ["1.png"]),
        ("counting-image", {"answer": [1, 2]}, "Text <image> more.Which?", ["1.png"]),
        (
            "retrieval-image",
            {"answer": 1, "meta": {"placed_depth": 0.5, "context_length": 1200, "choices": ["x", "y"]}},
            f"Text <image> more.Which?\nA. x\nB. y\n{LETTER}",
            ["1.png"],
        ),
        (
            "reasoning-image",
            {"answer": 1, "meta": {"placed_depth": 0.5, "context_length": 1200, "choices_image_path": ["a", "b"]}},
            f"Text <image> more.Which?\nA. <image>\nB. <image>\n{LETTER}",
            ["1.png", "a", "b"],
        ),
    ],
)
def test_mm_niah(tmp_path, name, changes, text, images):
    _needle(tmp_path, name, **changes)
    question, shorter = ask(f"mmniah_val_{name.replace('-', '_')}", tmp_path)
    assert (question.id, shorter.id) == ("4", "3")  # the longest first
    assert text_of(question) == text
    folder = tmp_path / "dataset/benchmark/MM-NIAH/mm_niah_val/images"
    assert [image.path for image in question.images] == [str(folder / image) for image in images]
    assert question.facts["task"] == f"{name}-val"


def test_mm_niah_refuses_a_missing_image(tmp_path):
    _needle(tmp_path, "retrieval-text", images_list=[])
    with pytest.raises(DataError, match=r":2: 1 <image> in context and question, but images_list has 0"):
        ask("mmniah_val_retrieval_text", tmp_path)


def test_mm_niah_long_reads_every_file(tmp_path):
    _needle(tmp_path, "retrieval-image")
    source = tmp_path / "dataset/benchmark/MM-NIAH/mm_niah_val/annotations/retrieval-image.jsonl"
    folder = tmp_path / "dataset/val/long_mr_1m"
    folder.mkdir(parents=True)
    (tmp_path / "dataset/image/long_mr/val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"long_mr_1m/\*\.jsonl: download"):
        create("mmniah_long_1m").check(tmp_path)
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_bytes(source.read_bytes())
    create("mmniah_long_1m").check(tmp_path)
    questions = ask("mmniah_long_1m", tmp_path)
    assert [question.id for question in questions] == ["a-4", "b-4", "a-3", "b-3"]
    assert questions[0].facts["task"] == "retrieval-image-test-1M"
    assert questions[0].images == (ImageRef(str(tmp_path / "dataset/image/long_mr/val/1.png")),)


def _milebench(root: Path, dataset: str, *instances: dict[str, Any], question_type: str = "multi-choice") -> None:
    data = [
        {"sample_id": number, "task_instruction_id": 0, "task_instance": instance, "response": "y"}
        for number, instance in enumerate(instances)
    ]
    meta = {"question_type": question_type, "task_instruction": ["Look."]}
    write_json(root / f"dataset/benchmark/MileBench/{dataset}/{dataset}.json", {"meta_data": meta, "data": data})


def test_milebench_with_choices(tmp_path):
    instance = {"context": "{image#1} and {table#2}. Which?", "images_path": ["1.png", "2.png"]}
    _milebench(tmp_path, "TQA", {**instance, "choice_list": ["x", "y"]})
    (question,) = ask("milebench_tqa", tmp_path)
    assert text_of(question) == f"Look.\n<image> and <image>. Which?\nChoice list: \nA. x\nB. y\n{LETTER}"
    folder = tmp_path / "dataset/benchmark/MileBench/TQA/images"
    assert [image.path for image in question.images] == [str(folder / "1.png"), str(folder / "2.png")]
    assert create("milebench_tqa").item(question, "B") == {
        "prediction": "B",
        "dataset": "TQA",
        "kind": "multichoice",
        "answer": "y",
        "choices": ["x", "y"],
        "n_images": 2,
    }


def test_milebench_without_letters(tmp_path):
    _milebench(tmp_path, "GPR1200", {"context": "{image#1}", "images_path": ["1.png"], "choice_list": ["x", "y"]})
    (question,) = ask("milebench_gpr1200", tmp_path)
    assert text_of(question) == f"Look.\n<image>\nChoice list: \nx\ny\n{LETTER}"


@pytest.mark.parametrize(
    "dataset, kind",
    [("ALFRED", "rouge"), ("MMCoQA", "mmcoqa"), ("TextNeedleInAHaystack", "needle")],
)
def test_milebench_open_ended(tmp_path, dataset, kind):
    _milebench(tmp_path, dataset, {"context": "{image#1} ?", "images_path": ["1.png"]}, question_type="open-ended")
    (question,) = ask(f"milebench_{dataset.lower()}", tmp_path)
    assert text_of(question) == "Look.\n<image> ?"
    assert question.facts["kind"] == kind


def test_milebench_comes_by_number_of_images_and_surplus_ones_stand_first(tmp_path):
    three = {"context": "a {image#3} b", "images_path": ["1.png", "2.png", "3.png"]}
    one = {"context": "none", "images_path": ["1.png"]}
    _milebench(tmp_path, "ALFRED", three, one, question_type="open-ended")
    first, second = ask("milebench_alfred", tmp_path)
    assert text_of(first) == "Look.\n<image>none"
    assert text_of(second) == "Look.\n<image><image>a <image> b"
    _, second = ask("milebench_alfred", tmp_path, mode="reference")
    assert text_of(second) == "Look.\n<image>a <image> b"
    assert [Path(image.path).name for image in second.images] == ["2.png", "3.png"]


def test_milebench_refuses(tmp_path):
    _milebench(tmp_path, "TQA", {"context": "{image#1} {image#1}", "images_path": ["1.png"]})
    with pytest.raises(DataError, match="record 0: 2 places for images, but images_path has 1"):
        ask("milebench_tqa", tmp_path)
    _milebench(tmp_path, "TQA", question_type="essay")
    with pytest.raises(DataError, match="question_type 'essay'"):
        ask("milebench_tqa", tmp_path)


def test_long_vqa(tmp_path):
    turns = [{"from": "human", "value": "Image-1: <image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    row = {"id": "x1", "image": ["1.png"], "conversations": turns, "metadata": {"context_length": 35000}}
    write_lines(tmp_path / "dataset/val/long_vqa_40k/val_long_vqa_docvqa_32_40.jsonl", row)
    (question,) = ask("longvqa_40k_docvqa", tmp_path)
    assert text_of(question) == "Image-1: <image>\nWhat?"
    assert question.images == (ImageRef(str(tmp_path / "dataset/image/long_vqa/image/docvqa/val/1.png")),)
    assert create("longvqa_40k_docvqa").item(question, "blue") == {
        "prediction": "blue",
        "task": "docvqa",
        "answer": "red",
    }
    assert create("longvqa_32k_gqa").needed[0].path == "dataset/val/long_vqa_32k/val_long_vqa_gqa_16_32.jsonl"
    assert create("longvqa_32k_gqa").needed[1].path == "dataset/image/long_vqa/paste/gqa/val"
