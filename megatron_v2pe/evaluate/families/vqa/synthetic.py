"""Made-up sets of VQAv2, OK-VQA, TextVQA, VizWiz, GQA and OCR-VQA, in the published form of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import SETS, Maker, QuestionLines, single_image_lines, with_answers

_LINES = {
    "ocrvqa_val": QuestionLines("data/ocrvqa/ocrvqa_val.jsonl", "data/ocrvqa/images", id="path"),
    "ocrvqa_test": QuestionLines("data/ocrvqa/ocrvqa_test.jsonl", "data/ocrvqa/images", id="path"),
    "gqa_testdev": QuestionLines(
        "data/gqa/testdev_balanced.jsonl", "data/gqa/images", "data/gqa/testdev_balanced_questions.json"
    ),
    "gqa_testdev_llava": QuestionLines(
        "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        "data/gqa/images",
        "data/gqa/testdev_balanced_questions.json",
    ),
    "vqav2_val": QuestionLines(
        "data/vqav2/vqav2_val.jsonl", "data/vqav2/val2014", "data/vqav2/v2_mscoco_val2014_annotations.json"
    ),
    "vqav2_testdev": QuestionLines("data/vqav2/vqav2_testdev.jsonl", "data/vqav2/test2015"),
    "okvqa_val": QuestionLines(
        "data/okvqa/okvqa_val.jsonl", "data/okvqa/val2014", "data/okvqa/mscoco_val2014_annotations.json"
    ),
    "textvqa_val": QuestionLines(
        "data/textvqa/textvqa_val.jsonl",
        "data/textvqa/train_images",
        "data/textvqa/textvqa_val_annotations.json",
    ),
    "textvqa_val_ocr": QuestionLines(
        "data/textvqa/textvqa_val_llava.jsonl",
        "data/textvqa/train_images",
        "data/textvqa/textvqa_val_annotations.json",
    ),
    "vizwiz_val": QuestionLines(
        "data/vizwiz/vizwiz_val.jsonl", "data/vizwiz/val", "data/vizwiz/vizwiz_val_annotations.json"
    ),
    "vizwiz_test": QuestionLines("data/vizwiz/vizwiz_test.jsonl", "data/vizwiz/test", id="path"),
}


@SETS.register("vqav2_val", "vqav2_testdev", "okvqa_val", "textvqa_val", "textvqa_val_ocr", "vizwiz_val", "vizwiz_test")
def _vqa(make: Maker) -> None:
    lines = _LINES[make.name]
    rows, answers = single_image_lines(make, lines)
    if lines.answers:
        votes = [[answer] * 8 + ["unanswerable", "a shape"] for answer in answers]
        voted = [_voted(row["question_id"], said) for row, said in zip(rows, votes, strict=True)]
        make.json(lines.answers, {"annotations": voted})
    make.lines(lines.file, rows)


@SETS.register("gqa_testdev", "gqa_testdev_llava")
def _gqa(make: Maker) -> None:
    lines = _LINES[make.name]
    rows, answers = single_image_lines(make, lines)
    truths = {str(row["question_id"]): {"answer": answer} for row, answer in zip(rows, answers, strict=True)}
    make.json(lines.answers, truths)
    make.lines(lines.file, rows)


@SETS.register("ocrvqa_val", "ocrvqa_test")
def _ocrvqa(make: Maker) -> None:
    lines = _LINES[make.name]
    make.lines(lines.file, with_answers(*single_image_lines(make, lines)))


def _voted(key: Any, answers: Sequence[str]) -> dict[str, Any]:
    return {
        "question_id": key,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
    }


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "textvqa": [{"answers": ["yes"] * 9 + ["no"]}],
    "stvqa_acc": [{"answers": ["a cat", "b"]}],
    "stvqa_anls": [{"answers": ["a cat", ""]}],
    "ocrvqa": [{"answers": ["the cat"]}],
    "gqa_convert": [{}, {"answer": "dog"}],
    "vqa_post_process": [{}, {"answer": "tree"}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
