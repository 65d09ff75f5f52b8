"""ScienceQA test, questions with an image: multiple choice from school lessons; accuracy of the letter.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import FAMILY_TILES, Benchmark, ImageRef, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.questions.files import VALUES, json_lines
from megatron_v2pe.evaluate.questions.single_image import QWEN
from megatron_v2pe.evaluate.questions.wording import LETTER, lettered, option_lines, with_image

BENCHMARKS.group("general", "scienceqa")

_FILE = "data/scienceqa/scienceqa_test_img.jsonl"
_FIELDS = {"image": str, "hint": (str, type(None)), "question": str, "choices": VALUES, "answer": int}


@BENCHMARKS.register("scienceqa", "sqa_test", "scienceqa_test")
class ScienceQa(Benchmark):
    """The questions of ScienceQA's test split that have an image."""

    title = "ScienceQA"
    scorer = "scienceqa"
    published_count = PublishedCount(2017, "ScienceQA's test questions with an image, as LLaVA's evaluation has them")
    max_tiles = FAMILY_TILES
    item_fields = ("options", "answer")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return questions and images."""
        return (
            Needed(_FILE, f"download {QWEN}/scienceqa/scienceqa_test_img.jsonl"),
            Needed(
                "data/scienceqa/images/test",
                "unpack https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip below data/scienceqa/images",
            ),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line."""
        for number, (where, row) in enumerate(json_lines(root / _FILE, _FIELDS)):
            options, right = lettered(row["choices"]), row["answer"]
            if not 0 <= right < len(options):
                raise DataError(f"{where}: answer {right!r}, but there are {len(options)} choices")
            parts = [row["hint"], row["question"], option_lines(options), LETTER]
            yield (
                where,
                Question(
                    id=str(number),
                    turns=asked(with_image("\n".join(parts if row["hint"] else parts[1:]))),
                    images=(ImageRef(str(root / row["image"])),),
                    facts={"options": options, "answer": list(options)[right]},
                ),
            )
