"""GQA testdev, balanced: compositional questions about photos; GQA's own accuracy.

Data, below `data/gqa/`: images `images/` of https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip, the questions
with their answers `testdev_balanced_questions.json` of
https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip, and the converted lines: `testdev_balanced.jsonl`
(https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/gqa/; `gqa_testdev`) or
`llava_gqa_testdev_balanced_qwen_format.jsonl` (InternVL; `gqa_testdev_llava`, what the published script runs). Fields:
`image`, `question`, `question_id`. A line's `answer`, where it has one, is not read: the official answers count.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.question_files import Row, demand, read_json

_QUESTIONS = "data/gqa/testdev_balanced_questions.json"
_OTHERS = (
    Needed(_QUESTIONS, "unpack https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip below data/gqa"),
    Needed("data/gqa/images", "unpack https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip below data/gqa"),
)


class GqaTestdev(SingleImageBenchmark):
    """Lines converted by the authors of Qwen-VL."""

    name = "gqa_testdev"
    title = "GQA testdev"
    scorer = "gqa_convert"
    file = Needed("data/gqa/testdev_balanced.jsonl", f"download {QWEN}/gqa/testdev_balanced.jsonl")
    others = _OTHERS
    max_new_tokens = 10
    item_fields = ("answer",)

    def truths(self, root: Path) -> TruthOf:
        """Return the official answers."""
        path = root / _QUESTIONS
        questions = demand(str(path), read_json(path), {})

        def truth_of(where: str, row: Row) -> Row:
            key = str(row["question_id"])
            if key not in questions:
                raise DataError(f"{where}: {path} has no question {key}: are they of different versions?")
            return {"answer": demand(f"{path}, question {key}", questions[key], {"answer": str})["answer"]}

        return truth_of


class GqaTestdevLlava(GqaTestdev):
    """Lines as LLaVA asks them."""

    name = "gqa_testdev_llava"
    title = "GQA testdev (LLaVA)"
    file = Needed(
        "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        "download it from https://github.com/OpenGVLab/InternVL/releases/tag/data",
    )
