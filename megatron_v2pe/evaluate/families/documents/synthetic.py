"""Made-up sets of ChartQA, DocVQA, InfoVQA and AI2D, in the published form of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_v2pe.workshop.synthetic.benchmarks import (
    LETTERS,
    SETS,
    Drawn,
    Maker,
    QuestionLines,
    colour_question,
    single_image_lines,
    with_answers,
)

_LINES = {
    "chartqa_human": QuestionLines("data/chartqa/test_human.jsonl", "data/chartqa/ChartQA Dataset/test/png"),
    "chartqa_augmented": QuestionLines("data/chartqa/test_augmented.jsonl", "data/chartqa/ChartQA Dataset/test/png"),
    "docvqa_val": QuestionLines("data/docvqa/val.jsonl", "data/docvqa/val/documents", "data/docvqa/val/val_v1.0.json"),
    "docvqa_test": QuestionLines("data/docvqa/test.jsonl", "data/docvqa/test/documents"),
    "infovqa_val": QuestionLines(
        "data/infographicsvqa/val.jsonl",
        "data/infographicsvqa/infographicsvqa_images",
        "data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json",
    ),
    "infovqa_test": QuestionLines("data/infographicsvqa/test.jsonl", "data/infographicsvqa/infographicsvqa_images"),
    "ai2d": QuestionLines("data/ai2diagram/test_vlmevalkit.jsonl", "data/ai2diagram/AI2D_TEST", id="path"),
}
_ASK_OPTIONS = "Please answer the question based on the options mentioned before."


@SETS.register("chartqa_human", "chartqa_augmented")
def _chartqa(make: Maker) -> None:
    lines = _LINES[make.name]
    make.lines(lines.file, with_answers(*single_image_lines(make, lines)))


@SETS.register("docvqa_val", "docvqa_test", "infovqa_val", "infovqa_test")
def _documents(make: Maker) -> None:
    lines = _LINES[make.name]
    rows, answers = single_image_lines(make, lines)
    if lines.answers:
        make.json(lines.answers, _document_file(rows, answers, "infographics" in lines.answers))
    make.lines(lines.file, rows)


@SETS.register("ai2d")
def _ai2d(make: Maker) -> None:
    lines = _LINES[make.name]
    make.lines(lines.file, with_answers(*single_image_lines(make, lines, _options)))


def _options(make: Maker, drawn: Drawn) -> tuple[str, str]:
    """Return a question with its options, and the letter of the right one."""
    options = make.choices(drawn.colour)
    shown = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([colour_question(drawn), *shown, _ASK_OPTIONS]), LETTERS[options.index(drawn.colour)]


def _document_file(rows: Sequence[Mapping[str, Any]], truths: Sequence[str], types: bool) -> dict[str, Any]:
    groups = {"answer_type": ["single span"], "evidence": ["Figure"], "operation/reasoning": []} if types else {}
    data = [
        {"questionId": row["question_id"], "question": row["question"], "answers": [answer, f"{answer} one"], **groups}
        for row, answer in zip(rows, truths, strict=True)
    ]
    return {"dataset_name": "made up", "dataset_version": "1.0", "dataset_split": "val", "data": data}


SAMPLE_ITEMS: dict[str, list[dict[str, Any]]] = {
    "docvqa": [{"answers": ["12 March", ""]}],
    "chartqa": [{"answers": "10"}, {"answers": ["5%", "Blue"]}],
}
"""Name of each scorer of the family -> items it can be given, without `prediction`; tests add odd answers to them."""
