"""TextVQA val: questions about text in photos; VQA soft accuracy.

Data, below `data/textvqa/`: images `train_images/` of
https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip, `textvqa_val_annotations.json` converted by the
authors of Qwen-VL: https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/textvqa/, and
`textvqa_val.jsonl` of https://huggingface.co/OpenGVLab/InternVL, or for `textvqa_val_ocr` its
`textvqa_val_llava.jsonl`, whose questions name the words an OCR found. Fields: `image`, `question`, `question_id`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import INTERNVL, QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.benchmarks.voted_answers import voted_answers

_ANSWERS = "data/textvqa/textvqa_val_annotations.json"


class TextVqaVal(SingleImageBenchmark):
    """Validation split."""

    name = "textvqa_val"
    title = "TextVQA val"
    scorer = "textvqa"
    file = Needed("data/textvqa/textvqa_val.jsonl", f"download {INTERNVL}/textvqa_val.jsonl")
    others = (
        Needed(_ANSWERS, f"download {QWEN}/textvqa/textvqa_val_annotations.json"),
        Needed(
            "data/textvqa/train_images",
            "unpack https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip below data/textvqa",
        ),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return voted_answers(root / _ANSWERS)


class TextVqaValOcr(TextVqaVal):
    """Validation split, words found by an OCR in the question."""

    name = "textvqa_val_ocr"
    title = "TextVQA val (OCR words)"
    file = Needed("data/textvqa/textvqa_val_llava.jsonl", f"download {INTERNVL}/textvqa_val_llava.jsonl")
