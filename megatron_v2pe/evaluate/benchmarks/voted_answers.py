"""True answers of the VQA family: ten people's answers to a question, in the annotation files of VQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmarks.single_image import TruthOf
from megatron_v2pe.evaluate.question_files import ID, Row, demand, json_records, read_json


def voted_answers(path: Path) -> TruthOf:
    """Return the answers of an annotation file by question.

    Raises:
        DataError: the file is of another kind, or has a question twice.
    """
    content = demand(str(path), read_json(path), {"annotations": list})
    answers: dict[Any, list[str]] = {}
    for where, record in json_records(path, content["annotations"], {"question_id": ID, "answers": list}):
        if record["question_id"] in answers:
            raise DataError(f"{where}: question_id {record['question_id']} is there twice")
        answers[record["question_id"]] = [
            demand(where, answer, {"answer": str})["answer"] for answer in record["answers"]
        ]

    def truth_of(where: str, row: Row) -> Row:
        if row["question_id"] not in answers:
            raise DataError(f"{where}: {path} has no question {row['question_id']}: are they of different versions?")
        return {"answers": answers[row["question_id"]]}

    return truth_of
