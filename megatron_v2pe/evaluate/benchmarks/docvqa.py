"""DocVQA: questions about scanned pages; ANLS on the validation split, a file for the server on the test split.

Data, below `data/docvqa/`: `val.tar.gz` and `test.tar.gz` of https://datasets.cvc.uab.es/rrc/DocVQA/, unpacked
(`val/documents/*.png`, `val/val_v1.0.json`, `test/`), and `val.jsonl`, `test.jsonl`, converted by the authors of
Qwen-VL: https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/docvqa/. Fields: `image`, `question`,
`question_id`; answers of `val` are in `val/val_v1.0.json`.

The answers for test go to https://rrc.cvc.uab.es/?ch=17: a list of `questionId` and `answer`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.document_answers import document_answers
from megatron_v2pe.evaluate.benchmarks.single_image import QWEN, SingleImageBenchmark, TruthOf

_ARCHIVE = "unpack https://datasets.cvc.uab.es/rrc/DocVQA/{}.tar.gz below data/docvqa"
_ANSWERS = "data/docvqa/val/val_v1.0.json"


class DocVqaVal(SingleImageBenchmark):
    """Validation split."""

    name = "docvqa_val"
    title = "DocVQA val"
    scorer = "docvqa"
    file = Needed("data/docvqa/val.jsonl", f"download {QWEN}/docvqa/val.jsonl")
    others = (
        Needed(_ANSWERS, _ARCHIVE.format("val")),
        Needed("data/docvqa/val/documents", _ARCHIVE.format("val")),
    )
    max_tiles = 18

    def truths(self, root: Path) -> TruthOf:
        """Return the answers of `val_v1.0.json`."""
        return document_answers(root / _ANSWERS)


class DocVqaTest(SingleImageBenchmark):
    """Test split, scored by the server."""

    name = "docvqa_test"
    title = "DocVQA test"
    scorer = None
    file = Needed("data/docvqa/test.jsonl", f"download {QWEN}/docvqa/test.jsonl")
    others = (Needed("data/docvqa/test", _ARCHIVE.format("test")),)
    max_tiles = 18
    submission_key = "questionId"
