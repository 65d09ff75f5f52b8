"""ChartQA test: questions about charts, asked by people (`human`) or generated (`augmented`); relaxed accuracy.

Data, below `data/chartqa/`: `ChartQA Dataset/test/png/*.png` from
https://drive.google.com/file/d/1Lm_w6zeET1Hyl_9ks6w5nEsgpoyPHalV/view (the space in the name is real), and
`test_human.jsonl`, `test_augmented.jsonl`, converted by the authors of Qwen-VL:
https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/chartqa/. Fields: `image`, `question`,
`question_id`, `answer`.

The published table shows one number, presumably the mean of the two splits. The published scorer swaps its arguments;
that is the scorer's matter.
"""

from __future__ import annotations

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import QWEN, SingleImageBenchmark

_IMAGES = Needed(
    "data/chartqa/ChartQA Dataset/test/png",
    "unpack https://drive.google.com/file/d/1Lm_w6zeET1Hyl_9ks6w5nEsgpoyPHalV/view below data/chartqa",
)


class ChartQaHuman(SingleImageBenchmark):
    """Questions written by people."""

    name = "chartqa_human"
    title = "ChartQA human"
    scorer = "chartqa"
    file = Needed("data/chartqa/test_human.jsonl", f"download {QWEN}/chartqa/test_human.jsonl")
    others = (_IMAGES,)
    max_tiles = 12


class ChartQaAugmented(SingleImageBenchmark):
    """Questions generated from summaries."""

    name = "chartqa_augmented"
    title = "ChartQA augmented"
    scorer = "chartqa"
    file = Needed("data/chartqa/test_augmented.jsonl", f"download {QWEN}/chartqa/test_augmented.jsonl")
    others = (_IMAGES,)
    max_tiles = 12
