"""Made-up sets of benchmarks that ask short questions about single images: lines, and answers in the form of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_v2pe.workshop.synthetic.benchmark_sets.files import LETTERS, Maker, Writer

_ASK_OPTIONS = "Please answer the question based on the options mentioned before."


@dataclass(frozen=True)
class Lines:
    """Where the questions about single images stand."""

    file: str
    images: str
    answers: str = ""
    """Another file that has the answers: `documents PATH`, `votes PATH`, `gqa PATH`; `line`: they are in the lines."""
    id: str = "number"
    """What `question_id` is: `number`, or `path` of the image."""


SINGLE_IMAGE = {
    "chartqa_human": Lines("data/chartqa/test_human.jsonl", "data/chartqa/ChartQA Dataset/test/png", "line"),
    "chartqa_augmented": Lines("data/chartqa/test_augmented.jsonl", "data/chartqa/ChartQA Dataset/test/png", "line"),
    "docvqa_val": Lines(
        "data/docvqa/val.jsonl", "data/docvqa/val/documents", "documents data/docvqa/val/val_v1.0.json"
    ),
    "docvqa_test": Lines("data/docvqa/test.jsonl", "data/docvqa/test/documents"),
    "infovqa_val": Lines(
        "data/infographicsvqa/val.jsonl",
        "data/infographicsvqa/infographicsvqa_images",
        "documents data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json",
    ),
    "infovqa_test": Lines("data/infographicsvqa/test.jsonl", "data/infographicsvqa/infographicsvqa_images"),
    "ai2d": Lines("data/ai2diagram/test_vlmevalkit.jsonl", "data/ai2diagram/AI2D_TEST", "line", "path"),
    "ocrvqa_val": Lines("data/ocrvqa/ocrvqa_val.jsonl", "data/ocrvqa/images", "line", "path"),
    "ocrvqa_test": Lines("data/ocrvqa/ocrvqa_test.jsonl", "data/ocrvqa/images", "line", "path"),
    "gqa_testdev": Lines(
        "data/gqa/testdev_balanced.jsonl", "data/gqa/images", "gqa data/gqa/testdev_balanced_questions.json"
    ),
    "gqa_testdev_llava": Lines(
        "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        "data/gqa/images",
        "gqa data/gqa/testdev_balanced_questions.json",
    ),
    "vqav2_val": Lines(
        "data/vqav2/vqav2_val.jsonl", "data/vqav2/val2014", "votes data/vqav2/v2_mscoco_val2014_annotations.json"
    ),
    "vqav2_testdev": Lines("data/vqav2/vqav2_testdev.jsonl", "data/vqav2/test2015"),
    "okvqa_val": Lines(
        "data/okvqa/okvqa_val.jsonl", "data/okvqa/val2014", "votes data/okvqa/mscoco_val2014_annotations.json"
    ),
    "textvqa_val": Lines(
        "data/textvqa/textvqa_val.jsonl",
        "data/textvqa/train_images",
        "votes data/textvqa/textvqa_val_annotations.json",
    ),
    "textvqa_val_ocr": Lines(
        "data/textvqa/textvqa_val_llava.jsonl",
        "data/textvqa/train_images",
        "votes data/textvqa/textvqa_val_annotations.json",
    ),
    "vizwiz_val": Lines(
        "data/vizwiz/vizwiz_val.jsonl", "data/vizwiz/val", "votes data/vizwiz/vizwiz_val_annotations.json"
    ),
    "vizwiz_test": Lines("data/vizwiz/vizwiz_test.jsonl", "data/vizwiz/test", id="path"),
}


def _single_image(make: Maker) -> None:
    spec = SINGLE_IMAGE[make.name]
    rows: list[dict[str, Any]] = []
    truths: list[str] = []
    # Benchmarks that share a folder of images draw the same ones.
    shared = make.named(spec.images)
    for number in range(make.questions):
        path = f"{spec.images}/{number:03d}.png"
        drawn = shared.picture(path)
        question, answer = f"What colour is the {drawn.shape}?", drawn.colour
        if make.name == "ai2d":
            options = shared.choices(answer)
            lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
            question = "\n".join([question, *lines, _ASK_OPTIONS])
            answer = LETTERS[options.index(answer)]
        rows.append({"image": path, "question": question, "question_id": path if spec.id == "path" else 1000 + number})
        truths.append(answer)
    kind, _, path = spec.answers.partition(" ")
    ids = [row["question_id"] for row in rows]
    if kind == "line":
        rows = [{**row, "answer": answer} for row, answer in zip(rows, truths, strict=True)]
    elif kind == "documents":
        make.json(path, _document_file(rows, truths, "infographics" in path))
    elif kind == "votes":
        votes = [[answer] * 8 + ["unanswerable", "a shape"] for answer in truths]
        make.json(path, {"annotations": [_voted(key, voted) for key, voted in zip(ids, votes, strict=True)]})
    elif kind == "gqa":
        make.json(path, {str(key): {"answer": answer} for key, answer in zip(ids, truths, strict=True)})
    make.lines(spec.file, rows)


def _document_file(rows: Sequence[Mapping[str, Any]], truths: Sequence[str], types: bool) -> dict[str, Any]:
    groups = {"answer_type": ["single span"], "evidence": ["Figure"], "operation/reasoning": []} if types else {}
    data = [
        {"questionId": row["question_id"], "question": row["question"], "answers": [answer, f"{answer} one"], **groups}
        for row, answer in zip(rows, truths, strict=True)
    ]
    return {"dataset_name": "made up", "dataset_version": "1.0", "dataset_split": "val", "data": data}


def _voted(key: Any, answers: Sequence[str]) -> dict[str, Any]:
    return {
        "question_id": key,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, 1)
        ],
    }


WRITERS: dict[str, Writer] = dict.fromkeys(SINGLE_IMAGE, _single_image)
"""By name."""
