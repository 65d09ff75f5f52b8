"""VQAv2: open questions about COCO photos; VQA soft accuracy on val, a file for the server on test-dev.

Data, below `data/vqav2/`: links `val2014`, `test2015` to COCO's images http://images.cocodataset.org/zips/val2014.zip
and test2015.zip (`ln -s ../coco/val2014 ./`), `v2_mscoco_val2014_annotations.json` of
https://visualqa.org/download.html, and `vqav2_val.jsonl`, `vqav2_testdev.jsonl`, converted by the authors of Qwen-VL:
https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/vqav2/. Fields: `image`, `question`,
`question_id`.

The answers for test-dev go to EvalAI: a list of `question_id` and `answer`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import COCO, QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.benchmarks.voted_answers import voted_answers

_ANSWERS = "data/vqav2/v2_mscoco_val2014_annotations.json"


class VqaV2Val(SingleImageBenchmark):
    """Validation split."""

    name = "vqav2_val"
    title = "VQAv2 val"
    scorer = "textvqa"
    file = Needed("data/vqav2/vqav2_val.jsonl", f"download {QWEN}/vqav2/vqav2_val.jsonl")
    others = (
        Needed(
            _ANSWERS,
            "unpack https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_Val_mscoco.zip below data/vqav2",
        ),
        Needed("data/vqav2/val2014", COCO.format("val2014")),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return voted_answers(root / _ANSWERS)


class VqaV2Testdev(SingleImageBenchmark):
    """Test-dev split, scored by the server."""

    name = "vqav2_testdev"
    title = "VQAv2 test-dev"
    scorer = None
    file = Needed("data/vqav2/vqav2_testdev.jsonl", f"download {QWEN}/vqav2/vqav2_testdev.jsonl")
    others = (Needed("data/vqav2/test2015", COCO.format("test2015")),)
    max_new_tokens = 10
    submission_key = "question_id"
