"""How many questions each published benchmark has, and where that number comes from: one table for all of them.

A score over other data than the published ones must never stand beside a published number without a mark. Most parts of
a benchmark can be told from the whole by the number of their questions alone, so every number that is known is here,
with its source. Where none is known (`questions_published` gives None), the score is marked as well: nothing tells a
part of such a benchmark from the whole.
"""

from __future__ import annotations

_RRC = "rrc.cvc.uab.es"
_VQA = "visualqa.org"
_VIZWIZ = "vizwiz.org"
_OPEN_COMPASS = "the tables OpenCompass publishes, a row per question"
_MM_NIAH = "MM-NIAH's paper, samples of the test set by task (17,787 in all)"
_MILEBENCH = "MileBench's card on the Hugging Face hub (6,440 in all)"

COUNTS: dict[str, tuple[int, str]] = {
    "chartqa_human": (1250, "ChartQA's paper"),
    "chartqa_augmented": (1250, "ChartQA's paper"),
    "docvqa_val": (5349, _RRC),
    "docvqa_test": (5188, _RRC),
    "infovqa_val": (2801, _RRC),
    "infovqa_test": (3288, _RRC),
    "ai2d": (3088, "VLMEvalKit, whose split the file is"),
    "scienceqa": (2017, "ScienceQA's test questions with an image, as LLaVA's evaluation has them"),
    "pope": (8910, "the three label files at commit e3e39262: 2,910, 3,000 and 3,000"),
    "mmmu_dev": (150, "MMMU's card on the Hugging Face hub"),
    "mmmu_val": (900, "MMMU's card on the Hugging Face hub"),
    "mmmu_test": (10500, "MMMU's card on the Hugging Face hub"),
    "mmbench_dev": (4377, _OPEN_COMPASS),
    "mmbench_dev_en": (4329, _OPEN_COMPASS),
    "mmbench_dev_cn": (4329, _OPEN_COMPASS),
    "mmbench_test_en": (6666, _OPEN_COMPASS),
    "mmbench_test_cn": (6666, _OPEN_COMPASS),
    "ccbench": (2040, _OPEN_COMPASS),
    "seed": (
        17990,
        "what InternVL's guide to its evaluation prints; 14,233 of SEED-Bench's are about images",
    ),
    "textvqa_val": (5000, "textvqa.org"),
    "textvqa_val_ocr": (5000, "textvqa.org"),
    "vqav2_val": (214354, _VQA),
    "vqav2_testdev": (107394, _VQA),
    "okvqa_val": (5046, "okvqa.allenai.org"),
    "vizwiz_val": (4319, _VIZWIZ),
    "vizwiz_test": (8000, _VIZWIZ),
    "gqa_testdev": (12578, "GQA's testdev_balanced_questions.json"),
    "gqa_testdev_llava": (12578, "GQA's testdev_balanced_questions.json"),
    "mvbench": (4000, "MVBench's paper: 20 tasks of 200"),
    "videomme": (2700, "Video-MME's paper: 900 videos, three questions each"),
    "mmniah_test_retrieval_text": (3072, _MM_NIAH),
    "mmniah_test_retrieval_image": (3005, _MM_NIAH),
    "mmniah_test_counting_text": (3060, _MM_NIAH),
    "mmniah_test_counting_image": (2713, _MM_NIAH),
    "mmniah_test_reasoning_text": (3004, _MM_NIAH),
    "mmniah_test_reasoning_image": (2933, _MM_NIAH),
    "milebench_textneedleinahaystack": (320, _MILEBENCH),
    "milebench_imageneedleinahaystack": (320, _MILEBENCH),
    "milebench_gpr1200": (600, _MILEBENCH),
}
"""Name of a benchmark -> questions of its published files, and who says so."""
_MILEBENCH_SET = 200
"""Questions of each of MileBench's other 26 sets."""
NOT_STATED = {
    "mmniah_val_": "MM-NIAH's validation tasks one by one; the six together are 3,114",
    "mmniah_long_": "the long sets of V2PE-Data",
    "longvqa_": "Long-VQA's files one by one; all 85 together are about 141,000",
    "ocrvqa_": "OCR-VQA's files of Qwen-VL",
}
"""Beginning of the names of benchmarks whose number is not known here -> what is known."""


def questions_published(name: str) -> int | None:
    """Return how many questions the published files of a benchmark have; None: that is not known here."""
    if name in COUNTS:
        return COUNTS[name][0]
    return _MILEBENCH_SET if name.startswith("milebench_") else None


def other_than_published(questions: int, published: int | None) -> str:
    """Return in words that data are not the published ones, by their number; empty where they can be.

    Args:
        questions: of the data.
        published: of the published files; None: not known.
    """
    if published is None or questions == published:
        return ""
    return f"data of {questions} questions, {published} are published"
