"""What ChartQA, DocVQA, InfoVQA and AI2D ask: questions about one chart, page, infographic or diagram each.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed, PublishedCount
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.questions.files import ID, TEXTS, VALUES, Row, demand, json_records, optional, read_json
from megatron_v2pe.evaluate.questions.single_image import INTERNVL, QWEN, SingleImageBenchmark, TruthOf

BENCHMARKS.group("general", "chartqa_human", "chartqa_augmented", "docvqa_val", "ai2d", "infovqa_val")
BENCHMARKS.also("general", "auto")
BENCHMARKS.group("chartqa", "chartqa_human", "chartqa_augmented")
BENCHMARKS.also("chartqa", "vqa_chartqa_test")
BENCHMARKS.group("docvqa", "docvqa_val")
BENCHMARKS.group("infovqa", "infovqa_val")

_RRC = "rrc.cvc.uab.es"
_QUESTION_GROUPS = ("answer_type", "evidence", "operation/reasoning")
"""What InfoVQA's file says of a question besides: lists."""


def _document_answers(path: Path) -> TruthOf:
    """Return the answers of a file of DocVQA's form by question: `data[]` with `questionId` and `answers`.

    Raises:
        DataError: the file is of another kind, or has a question twice.
    """
    content = demand(str(path), read_json(path), {"data": list, "dataset_name": str})
    truths: dict[Any, Row] = {}
    for where, record in json_records(path, content["data"], {"questionId": ID, "answers": VALUES}):
        if record["questionId"] in truths:
            raise DataError(f"{where}: questionId {record['questionId']} is there twice")
        optional(where, record, dict.fromkeys(_QUESTION_GROUPS, TEXTS))
        groups = {name: record[name] for name in _QUESTION_GROUPS if name in record}
        truths[record["questionId"]] = {"answers": record["answers"], **groups}

    def truth_of(where: str, row: Row) -> Row:
        if row["question_id"] not in truths:
            raise DataError(f"{where}: {path} has no question {row['question_id']}: are they of different versions?")
        return truths[row["question_id"]]

    return truth_of


_CHARTQA_IMAGES = Needed(
    "data/chartqa/ChartQA Dataset/test/png",
    "unpack https://drive.google.com/file/d/1Lm_w6zeET1Hyl_9ks6w5nEsgpoyPHalV/view below data/chartqa",
)


@BENCHMARKS.register("chartqa_human", "vqa_chartqa_test_human", "chartqa_test_human")
class ChartQaHuman(SingleImageBenchmark):
    """ChartQA's questions that people have written."""

    title = "ChartQA human"
    scorer = "chartqa"
    published_count = PublishedCount(1250, "ChartQA's paper")
    file = Needed("data/chartqa/test_human.jsonl", f"download {QWEN}/chartqa/test_human.jsonl")
    others = (_CHARTQA_IMAGES,)
    max_tiles = 12


@BENCHMARKS.register("chartqa_augmented", "vqa_chartqa_test_augmented", "chartqa_test_augmented")
class ChartQaAugmented(SingleImageBenchmark):
    """ChartQA's questions that were generated from summaries of charts."""

    title = "ChartQA augmented"
    scorer = "chartqa"
    published_count = PublishedCount(1250, "ChartQA's paper")
    file = Needed("data/chartqa/test_augmented.jsonl", f"download {QWEN}/chartqa/test_augmented.jsonl")
    others = (_CHARTQA_IMAGES,)
    max_tiles = 12


_DOCVQA_ARCHIVE = "unpack https://datasets.cvc.uab.es/rrc/DocVQA/{}.tar.gz below data/docvqa"
_DOCVQA_ANSWERS = "data/docvqa/val/val_v1.0.json"


@BENCHMARKS.register("docvqa_val", "vqa_docvqa_val")
class DocVqaVal(SingleImageBenchmark):
    """The validation split of DocVQA."""

    title = "DocVQA val"
    scorer = "docvqa"
    published_count = PublishedCount(5349, _RRC)
    file = Needed("data/docvqa/val.jsonl", f"download {QWEN}/docvqa/val.jsonl")
    others = (
        Needed(_DOCVQA_ANSWERS, _DOCVQA_ARCHIVE.format("val")),
        Needed("data/docvqa/val/documents", _DOCVQA_ARCHIVE.format("val")),
    )
    max_tiles = 18

    def truths(self, root: Path) -> TruthOf:
        """Return the answers of `val_v1.0.json`."""
        return _document_answers(root / _DOCVQA_ANSWERS)


@BENCHMARKS.register("docvqa_test", "vqa_docvqa_test")
class DocVqaTest(SingleImageBenchmark):
    """The test split of DocVQA, which the server scores."""

    title = "DocVQA test"
    scorer = None
    published_count = PublishedCount(5188, _RRC)
    file = Needed("data/docvqa/test.jsonl", f"download {QWEN}/docvqa/test.jsonl")
    others = (Needed("data/docvqa/test", _DOCVQA_ARCHIVE.format("test")),)
    max_tiles = 18
    submission_key = "questionId"


_INFOVQA_ANSWERS = "data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json"
_INFOVQA_IMAGES = Needed(
    "data/infographicsvqa/infographicsvqa_images", "download the images from https://rrc.cvc.uab.es/?ch=17"
)


@BENCHMARKS.register("infovqa_val", "vqa_infovqa_val", "infographicsvqa_val")
class InfoVqaVal(SingleImageBenchmark):
    """The validation split of InfoVQA."""

    title = "InfoVQA val"
    scorer = "docvqa"
    published_count = PublishedCount(2801, _RRC)
    file = Needed("data/infographicsvqa/val.jsonl", f"download {INTERNVL}/infographicsvqa_val.jsonl as val.jsonl")
    others = (Needed(_INFOVQA_ANSWERS, "download it from https://rrc.cvc.uab.es/?ch=17"), _INFOVQA_IMAGES)
    max_tiles = 24
    item_fields = ("answers", *_QUESTION_GROUPS)

    def truths(self, root: Path) -> TruthOf:
        """Return the answers of the withQT file."""
        return _document_answers(root / _INFOVQA_ANSWERS)


@BENCHMARKS.register("infovqa_test", "vqa_infovqa_test", "infographicsvqa_test")
class InfoVqaTest(SingleImageBenchmark):
    """The test split of InfoVQA, which the server scores."""

    title = "InfoVQA test"
    scorer = None
    published_count = PublishedCount(3288, _RRC)
    file = Needed("data/infographicsvqa/test.jsonl", f"download {INTERNVL}/infographicsvqa_test.jsonl as test.jsonl")
    others = (_INFOVQA_IMAGES,)
    max_tiles = 24
    submission_key = "questionId"


_OPTION = re.compile(r"^([A-H])\. *(\S.*)$", re.MULTILINE)
"""A line of an option, as VLMEvalKit writes it."""


@BENCHMARKS.register("ai2d", "vqa_ai2d_test", "ai2diagram_test", "ai2d_test")
class Ai2d(SingleImageBenchmark):
    """The test split of AI2D, in the words of VLMEvalKit."""

    title = "AI2D"
    scorer = "ocrvqa"
    published_count = PublishedCount(3088, "VLMEvalKit, whose split the file is")
    file = Needed(
        "data/ai2diagram/test_vlmevalkit.jsonl",
        f"download {INTERNVL}/ai2d_test_vlmevalkit.jsonl as test_vlmevalkit.jsonl",
    )
    others = (
        Needed(
            "data/ai2diagram/AI2D_TEST",
            "unpack https://huggingface.co/OpenGVLab/InternVL/resolve/main/AI2D_TEST.zip below data/ai2diagram",
        ),
    )
    sentence = ""
    numbered = True
    max_new_tokens = 10
    item_fields = ("answers", "options")

    def truths(self, root: Path) -> TruthOf:
        """Return what gives an answer's letter and the options' texts, which stand in the question."""
        letter_of = super().truths(root)

        def truth(where: str, row: Row) -> Mapping[str, Any]:
            return {**letter_of(where, row), "options": dict(_OPTION.findall(row["question"]))}

        return truth
