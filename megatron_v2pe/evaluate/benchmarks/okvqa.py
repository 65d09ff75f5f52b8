"""OK-VQA val: questions about COCO photos that need knowledge; VQA soft accuracy.

Data, below `data/okvqa/`: a link `val2014` to COCO's images http://images.cocodataset.org/zips/val2014.zip,
`mscoco_val2014_annotations.json` of https://okvqa.allenai.org/download.html, and `okvqa_val.jsonl`, converted by the
authors of Qwen-VL: https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/okvqa/. Fields: `image`,
`question`, `question_id`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import COCO, QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.benchmarks.voted_answers import voted_answers

_ANSWERS = "data/okvqa/mscoco_val2014_annotations.json"


class OkVqaVal(SingleImageBenchmark):
    """Validation split."""

    name = "okvqa_val"
    title = "OK-VQA val"
    scorer = "textvqa"
    file = Needed("data/okvqa/okvqa_val.jsonl", f"download {QWEN}/okvqa/okvqa_val.jsonl")
    others = (
        Needed(
            _ANSWERS,
            "unpack https://okvqa.allenai.org/static/data/mscoco_val2014_annotations.json.zip below data/okvqa",
        ),
        Needed("data/okvqa/val2014", COCO.format("val2014")),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return voted_answers(root / _ANSWERS)
