"""InfoVQA: questions about infographics; ANLS on the validation split, a file for the server on the test split.

Data, below `data/infographicsvqa/`: images `infographicsvqa_images/` and `infographicsVQA_val_v1.0_withQT.json` of
https://rrc.cvc.uab.es/?ch=17 (registration), and `val.jsonl`, `test.jsonl`: `infographicsvqa_val.jsonl` and
`infographicsvqa_test.jsonl` of https://huggingface.co/OpenGVLab/InternVL under their new names. Fields: `image`,
`question`, `question_id`; answers of `val`, with the kind of answer, evidence and operation, are in the withQT file.

The answers for test go to https://rrc.cvc.uab.es/?ch=17: a list of `questionId` and `answer`.
"""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.document_answers import GROUPS, document_answers
from megatron_v2pe.evaluate.benchmarks.single_image import INTERNVL, SingleImageBenchmark, TruthOf

_ANSWERS = "data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json"
_IMAGES = Needed(
    "data/infographicsvqa/infographicsvqa_images", "download the images from https://rrc.cvc.uab.es/?ch=17"
)


class InfoVqaVal(SingleImageBenchmark):
    """Validation split."""

    name = "infovqa_val"
    title = "InfoVQA val"
    scorer = "docvqa"
    file = Needed("data/infographicsvqa/val.jsonl", f"download {INTERNVL}/infographicsvqa_val.jsonl as val.jsonl")
    others = (Needed(_ANSWERS, "download it from https://rrc.cvc.uab.es/?ch=17"), _IMAGES)
    max_tiles = 24
    item_fields = ("answers", *GROUPS)

    def truths(self, root: Path) -> TruthOf:
        """Return the answers of the withQT file."""
        return document_answers(root / _ANSWERS)


class InfoVqaTest(SingleImageBenchmark):
    """Test split, scored by the server."""

    name = "infovqa_test"
    title = "InfoVQA test"
    scorer = None
    file = Needed("data/infographicsvqa/test.jsonl", f"download {INTERNVL}/infographicsvqa_test.jsonl as test.jsonl")
    others = (_IMAGES,)
    max_tiles = 24
    submission_key = "questionId"
