"""True answers of DocVQA and InfoVQA: `data[]` with `questionId` and `answers`, beside a `dataset_name`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmarks.single_image import TruthOf
from megatron_v2pe.evaluate.question_files import ID, TEXTS, VALUES, Row, demand, json_records, optional, read_json

GROUPS = ("answer_type", "evidence", "operation/reasoning")
"""What InfoVQA's file says of a question besides: lists."""


def document_answers(path: Path) -> TruthOf:
    """Return the answers of a file by question.

    Raises:
        DataError: the file is of another kind, or has a question twice.
    """
    content = demand(str(path), read_json(path), {"data": list, "dataset_name": str})
    truths: dict[Any, Row] = {}
    for where, record in json_records(path, content["data"], {"questionId": ID, "answers": VALUES}):
        if record["questionId"] in truths:
            raise DataError(f"{where}: questionId {record['questionId']} is there twice")
        optional(where, record, dict.fromkeys(GROUPS, TEXTS))
        groups = {name: record[name] for name in GROUPS if name in record}
        truths[record["questionId"]] = {"answers": record["answers"], **groups}

    def truth_of(where: str, row: Row) -> Row:
        if row["question_id"] not in truths:
            raise DataError(f"{where}: {path} has no question {row['question_id']}: are they of different versions?")
        return truths[row["question_id"]]

    return truth_of
