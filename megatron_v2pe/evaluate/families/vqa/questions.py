"""What VQAv2, OK-VQA, TextVQA, VizWiz, GQA and OCR-VQA ask: open questions about one photo or book cover each.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed, PublishedCount
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.questions.files import ID, Row, demand, json_records, read_json
from megatron_v2pe.evaluate.questions.single_image import COCO, INTERNVL, QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.questions.wording import SHORT

BENCHMARKS.group("textvqa", "textvqa_val")
BENCHMARKS.group("vqav2", "vqav2_val")
BENCHMARKS.group("okvqa", "okvqa_val")
BENCHMARKS.group("vizwiz", "vizwiz_val")
BENCHMARKS.group("gqa", "gqa_testdev_llava")
BENCHMARKS.group("ocrvqa", "ocrvqa_test")
BENCHMARKS.group("vqa", "vqav2_val", "okvqa_val", "textvqa_val", "vizwiz_val", "gqa_testdev_llava")

_VQA = "visualqa.org"
_VIZWIZ = "vizwiz.org"


def _voted_answers(path: Path) -> TruthOf:
    """Return the answers of an annotation file by question.

    Raises:
        DataError: the file is of another kind, or has a question twice.
    """
    content = demand(str(path), read_json(path), {"annotations": list})
    answers: dict[Any, list[str]] = {}
    for where, record in json_records(path, content["annotations"], {"question_id": ID, "answers": list}):
        if record["question_id"] in answers:
            raise DataError(f"{where}: question_id {record['question_id']} is there twice")
        answers[record["question_id"]] = [
            demand(where, answer, {"answer": str})["answer"] for answer in record["answers"]
        ]

    def truth_of(where: str, row: Row) -> Row:
        if row["question_id"] not in answers:
            raise DataError(f"{where}: {path} has no question {row['question_id']}: are they of different versions?")
        return {"answers": answers[row["question_id"]]}

    return truth_of


_TEXTVQA_ANSWERS = "data/textvqa/textvqa_val_annotations.json"


@BENCHMARKS.register("textvqa_val", "vqa_textvqa_val")
class TextVqaVal(SingleImageBenchmark):
    """The validation split of TextVQA."""

    title = "TextVQA val"
    scorer = "textvqa"
    published_count = PublishedCount(5000, "textvqa.org")
    file = Needed("data/textvqa/textvqa_val.jsonl", f"download {INTERNVL}/textvqa_val.jsonl")
    others = (
        Needed(_TEXTVQA_ANSWERS, f"download {QWEN}/textvqa/textvqa_val_annotations.json"),
        Needed(
            "data/textvqa/train_images",
            "unpack https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip below data/textvqa",
        ),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return _voted_answers(root / _TEXTVQA_ANSWERS)


@BENCHMARKS.register("textvqa_val_ocr", "vqa_textvqa_val_ocr")
class TextVqaValOcr(TextVqaVal):
    """The validation split of TextVQA with the words that an OCR has found, which stand in the question."""

    title = "TextVQA val (OCR words)"
    file = Needed("data/textvqa/textvqa_val_llava.jsonl", f"download {INTERNVL}/textvqa_val_llava.jsonl")


_VQAV2_ANSWERS = "data/vqav2/v2_mscoco_val2014_annotations.json"


@BENCHMARKS.register("vqav2_val", "vqa_vqav2_val")
class VqaV2Val(SingleImageBenchmark):
    """The validation split of VQAv2."""

    title = "VQAv2 val"
    scorer = "textvqa"
    published_count = PublishedCount(214354, _VQA)
    file = Needed("data/vqav2/vqav2_val.jsonl", f"download {QWEN}/vqav2/vqav2_val.jsonl")
    others = (
        Needed(
            _VQAV2_ANSWERS,
            "unpack https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_Val_mscoco.zip below data/vqav2",
        ),
        Needed("data/vqav2/val2014", COCO.format("val2014")),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return _voted_answers(root / _VQAV2_ANSWERS)


@BENCHMARKS.register("vqav2_testdev", "vqa_vqav2_testdev")
class VqaV2Testdev(SingleImageBenchmark):
    """The test-dev split of VQAv2, which the server scores."""

    title = "VQAv2 test-dev"
    scorer = None
    published_count = PublishedCount(107394, _VQA)
    file = Needed("data/vqav2/vqav2_testdev.jsonl", f"download {QWEN}/vqav2/vqav2_testdev.jsonl")
    others = (Needed("data/vqav2/test2015", COCO.format("test2015")),)
    max_new_tokens = 10
    submission_key = "question_id"


_OKVQA_ANSWERS = "data/okvqa/mscoco_val2014_annotations.json"


@BENCHMARKS.register("okvqa_val", "vqa_okvqa_val")
class OkVqaVal(SingleImageBenchmark):
    """The validation split of OK-VQA."""

    title = "OK-VQA val"
    scorer = "textvqa"
    published_count = PublishedCount(5046, "okvqa.allenai.org")
    file = Needed("data/okvqa/okvqa_val.jsonl", f"download {QWEN}/okvqa/okvqa_val.jsonl")
    others = (
        Needed(
            _OKVQA_ANSWERS,
            "unpack https://okvqa.allenai.org/static/data/mscoco_val2014_annotations.json.zip below data/okvqa",
        ),
        Needed("data/okvqa/val2014", COCO.format("val2014")),
    )
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return _voted_answers(root / _OKVQA_ANSWERS)


_VIZWIZ_ANSWERS = "data/vizwiz/vizwiz_val_annotations.json"
_VIZWIZ_ARCHIVE = "unpack https://vizwiz.cs.colorado.edu/VizWiz_final/images/{}.zip below data/vizwiz"
_VIZWIZ_SENTENCE = f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}"


@BENCHMARKS.register("vizwiz_val", "vqa_vizwiz_val")
class VizWizVal(SingleImageBenchmark):
    """The validation split of VizWiz."""

    title = "VizWiz val"
    scorer = "textvqa"
    published_count = PublishedCount(4319, _VIZWIZ)
    file = Needed("data/vizwiz/vizwiz_val.jsonl", f"download {QWEN}/vizwiz/vizwiz_val.jsonl")
    others = (
        Needed(_VIZWIZ_ANSWERS, f"download {QWEN}/vizwiz/vizwiz_val_annotations.json"),
        Needed("data/vizwiz/val", _VIZWIZ_ARCHIVE.format("val")),
    )
    sentence = _VIZWIZ_SENTENCE
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return _voted_answers(root / _VIZWIZ_ANSWERS)


@BENCHMARKS.register("vizwiz_test", "vqa_vizwiz_test")
class VizWizTest(SingleImageBenchmark):
    """The test split of VizWiz, which the server scores."""

    title = "VizWiz test"
    scorer = None
    published_count = PublishedCount(8000, _VIZWIZ)
    file = Needed("data/vizwiz/vizwiz_test.jsonl", f"download {QWEN}/vizwiz/vizwiz_test.jsonl")
    others = (Needed("data/vizwiz/test", _VIZWIZ_ARCHIVE.format("test")),)
    sentence = _VIZWIZ_SENTENCE
    max_new_tokens = 10
    submission_key = "image"

    def submitted_id(self, question_id: Any) -> Any:
        """Return the file name of the image."""
        return str(question_id).replace("data/vizwiz/test/", "")


_GQA_QUESTIONS = "data/gqa/testdev_balanced_questions.json"
_GQA_OTHERS = (
    Needed(_GQA_QUESTIONS, "unpack https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip below data/gqa"),
    Needed("data/gqa/images", "unpack https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip below data/gqa"),
)


@BENCHMARKS.register("gqa_testdev")
class GqaTestdev(SingleImageBenchmark):
    """GQA's test-dev split in the lines that the authors of Qwen-VL have converted."""

    title = "GQA testdev"
    scorer = "gqa_convert"
    published_count = PublishedCount(12578, "GQA's testdev_balanced_questions.json")
    file = Needed("data/gqa/testdev_balanced.jsonl", f"download {QWEN}/gqa/testdev_balanced.jsonl")
    others = _GQA_OTHERS
    max_new_tokens = 10
    item_fields = ("answer",)

    def truths(self, root: Path) -> TruthOf:
        """Return the official answers."""
        path = root / _GQA_QUESTIONS
        questions = demand(str(path), read_json(path), {})

        def truth_of(where: str, row: Row) -> Row:
            key = str(row["question_id"])
            if key not in questions:
                raise DataError(f"{where}: {path} has no question {key}: are they of different versions?")
            return {"answer": demand(f"{path}, question {key}", questions[key], {"answer": str})["answer"]}

        return truth_of


@BENCHMARKS.register("gqa_testdev_llava", "vqa_gqa_testdev")
class GqaTestdevLlava(GqaTestdev):
    """GQA's test-dev split in the words of LLaVA."""

    title = "GQA testdev (LLaVA)"
    file = Needed(
        "data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
        "download it from https://github.com/OpenGVLab/InternVL/releases/tag/data",
    )


_OCRVQA_IMAGES = Needed("data/ocrvqa/images", "download the covers with the script of https://ocr-vqa.github.io/")


@BENCHMARKS.register("ocrvqa_val", "vqa_ocrvqa_val")
class OcrVqaVal(SingleImageBenchmark):
    """The validation split of OCR-VQA."""

    title = "OCR-VQA val"
    scorer = "ocrvqa"
    published_count_note = "OCR-VQA's files of Qwen-VL"
    file = Needed("data/ocrvqa/ocrvqa_val.jsonl", f"download {QWEN}/ocrvqa/ocrvqa_val.jsonl")
    others = (_OCRVQA_IMAGES,)
    numbered = True


@BENCHMARKS.register("ocrvqa_test", "vqa_ocrvqa_test")
class OcrVqaTest(SingleImageBenchmark):
    """The test split of OCR-VQA."""

    title = "OCR-VQA test"
    scorer = "ocrvqa"
    published_count_note = "OCR-VQA's files of Qwen-VL"
    file = Needed("data/ocrvqa/ocrvqa_test.jsonl", f"download {QWEN}/ocrvqa/ocrvqa_test.jsonl")
    others = (_OCRVQA_IMAGES,)
    numbered = True
