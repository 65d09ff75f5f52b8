"""AI2D test: multiple choice about school diagrams; exact match of the letter.

Data, below `data/ai2diagram/`: `ai2d_test_vlmevalkit.jsonl` of https://huggingface.co/OpenGVLab/InternVL as
`test_vlmevalkit.jsonl`, and its `AI2D_TEST.zip`, unpacked (`AI2D_TEST/`). Fields: `image`, `question` (options and
the instruction to answer with a letter already inside), `question_id`, `answer` (a letter). The published code files
answers under the image's name, so ids here are line numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import INTERNVL, SingleImageBenchmark, TruthOf
from megatron_v2pe.evaluate.question_files import Row

_OPTION = re.compile(r"^([A-H])\. *(\S.*)$", re.MULTILINE)
"""A line of an option, as VLMEvalKit writes it."""


class Ai2d(SingleImageBenchmark):
    """Test split, as VLMEvalKit words it."""

    name = "ai2d"
    title = "AI2D"
    scorer = "ocrvqa"
    file = Needed(
        "data/ai2diagram/test_vlmevalkit.jsonl",
        f"download {INTERNVL}/ai2d_test_vlmevalkit.jsonl as test_vlmevalkit.jsonl",
    )
    others = (
        Needed(
            "data/ai2diagram/AI2D_TEST",
            "unpack https://huggingface.co/OpenGVLab/InternVL/resolve/main/AI2D_TEST.zip below data/ai2diagram",
        ),
    )
    sentence = ""
    numbered = True
    max_new_tokens = 10
    item_fields = ("answers", "options")

    def truths(self, root: Path) -> TruthOf:
        """Return what gives an answer's letter and the options' texts, which stand in the question."""
        letter_of = super().truths(root)

        def truth(where: str, row: Row) -> Mapping[str, Any]:
            return {**letter_of(where, row), "options": dict(_OPTION.findall(row["question"]))}

        return truth
