"""OCR-VQA: questions about book covers; exact match.

Data, below `data/ocrvqa/`: images `images/` and questions of https://ocr-vqa.github.io/, and `ocrvqa_val.jsonl`,
`ocrvqa_test.jsonl`, converted by the authors of Qwen-VL:
https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/ocrvqa/. Fields: `image`, `question`,
`question_id`, `answer`. Ids here are line numbers: a cover has several questions.
"""

from __future__ import annotations

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import QWEN, SingleImageBenchmark

_IMAGES = Needed("data/ocrvqa/images", "download the covers with the script of https://ocr-vqa.github.io/")


class OcrVqaVal(SingleImageBenchmark):
    """Validation split."""

    name = "ocrvqa_val"
    title = "OCR-VQA val"
    scorer = "ocrvqa"
    file = Needed("data/ocrvqa/ocrvqa_val.jsonl", f"download {QWEN}/ocrvqa/ocrvqa_val.jsonl")
    others = (_IMAGES,)
    numbered = True


class OcrVqaTest(SingleImageBenchmark):
    """Test split."""

    name = "ocrvqa_test"
    title = "OCR-VQA test"
    scorer = "ocrvqa"
    file = Needed("data/ocrvqa/ocrvqa_test.jsonl", f"download {QWEN}/ocrvqa/ocrvqa_test.jsonl")
    others = (_IMAGES,)
    numbered = True
