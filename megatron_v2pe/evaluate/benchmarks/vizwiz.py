"""VizWiz: questions of blind people about their photos; VQA soft accuracy on val, a file for the server on test.

Data, below `data/vizwiz/`: images `val/`, `test/` of https://vizwiz.org/tasks-and-datasets/vqa/, and
`vizwiz_val.jsonl`, `vizwiz_val_annotations.json`, `vizwiz_test.jsonl`, converted by the authors of Qwen-VL:
https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation/vizwiz/. Fields: `image`, `question`,
`question_id`; on test the id is the image's path.

The answers for test go to EvalAI: a list of `image` (its file name) and `answer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import QWEN, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.benchmarks.voted_answers import voted_answers
from megatron_v2pe.evaluate.benchmarks.wording import SHORT

_ANSWERS = "data/vizwiz/vizwiz_val_annotations.json"
_ARCHIVE = "unpack https://vizwiz.cs.colorado.edu/VizWiz_final/images/{}.zip below data/vizwiz"
_SENTENCE = f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}"


class VizWizVal(SingleImageBenchmark):
    """Validation split."""

    name = "vizwiz_val"
    title = "VizWiz val"
    scorer = "textvqa"
    file = Needed("data/vizwiz/vizwiz_val.jsonl", f"download {QWEN}/vizwiz/vizwiz_val.jsonl")
    others = (
        Needed(_ANSWERS, f"download {QWEN}/vizwiz/vizwiz_val_annotations.json"),
        Needed("data/vizwiz/val", _ARCHIVE.format("val")),
    )
    sentence = _SENTENCE
    max_new_tokens = 10

    def truths(self, root: Path) -> TruthOf:
        """Return the people's answers."""
        return voted_answers(root / _ANSWERS)


class VizWizTest(SingleImageBenchmark):
    """Test split, scored by the server."""

    name = "vizwiz_test"
    title = "VizWiz test"
    scorer = None
    file = Needed("data/vizwiz/vizwiz_test.jsonl", f"download {QWEN}/vizwiz/vizwiz_test.jsonl")
    others = (Needed("data/vizwiz/test", _ARCHIVE.format("test")),)
    sentence = _SENTENCE
    max_new_tokens = 10
    submission_key = "image"

    def submitted_id(self, question_id: Any) -> Any:
        """Return the file name of the image."""
        return str(question_id).replace("data/vizwiz/test/", "")
