"""AI2D test: multiple choice about school diagrams; exact match of the letter.

Data, below `data/ai2diagram/`: `ai2d_test_vlmevalkit.jsonl` of https://huggingface.co/OpenGVLab/InternVL as
`test_vlmevalkit.jsonl`, and its `AI2D_TEST.zip`, unpacked (`AI2D_TEST/`). Fields: `image`, `question` (options and
the instruction to answer with a letter already inside), `question_id`, `answer` (a letter). The published code files
answers under the image's name, so ids here are line numbers.
"""

from __future__ import annotations

from megatron_v2pe.evaluate.benchmark import Needed
from megatron_v2pe.evaluate.benchmarks.single_image import INTERNVL, SingleImageBenchmark


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
