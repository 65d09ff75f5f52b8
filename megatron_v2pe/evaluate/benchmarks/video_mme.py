"""Video-MME: multiple choice about videos of 11 seconds to an hour; accuracy of the letter.

In the published table (50.7), but the published code has no evaluator for it: the way of asking is ours, and numbers
need not agree. Data: https://huggingface.co/datasets/lmms-lab/Video-MME as `data/Video-MME`, videos unpacked:
`videomme/test-*.parquet` (PyArrow, the `eval` extra) or `videomme/test.jsonl` with the same fields, and
`data/<videoID>.mp4` (PyAV, the `video` extra). Fields: `question_id`, `videoID`, `question`, `options` (`A. ...`),
`answer` (a letter), `duration` (short, medium, long), `domain`, `task_type`.

Shown are the middle frames of 16 equal parts, a tile each, as MVBench shows them. User text: `Frame1: <image>` lines,
then the benchmark's own words without subtitles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed, Question
from megatron_v2pe.evaluate.benchmarks.frames import frame_lines, video_images
from megatron_v2pe.evaluate.benchmarks.published import PublishedBenchmark, asked
from megatron_v2pe.evaluate.question_files import TEXTS, Fields, json_lines, parquet_rows

_ROOT = "data/Video-MME"
_SOURCE = "https://huggingface.co/datasets/lmms-lab/Video-MME"
_FIELDS: Fields = {
    **dict.fromkeys(("question_id", "videoID", "question", "answer", "duration", "domain", "task_type"), str),
    "options": TEXTS,
}
_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
_OPTION = re.compile(r"([A-D])\.\s*(.*)", re.DOTALL)


class VideoMme(PublishedBenchmark):
    """Without subtitles."""

    name = "videomme"
    title = "Video-MME"
    scorer = "mmbench"
    max_new_tokens = 16
    dynamic_tiling = False
    item_fields = ("options", "answer", "category")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the folders of questions and videos."""
        return (
            Needed(f"{_ROOT}/videomme", f"download {_SOURCE} as {_ROOT}"),
            Needed(f"{_ROOT}/data", f"unpack the archives of {_SOURCE}: <videoID>.mp4"),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per row."""
        folder = root / _ROOT / "videomme"
        files = sorted(folder.glob("test-*.parquet")) or [folder / "test.jsonl"]
        for path in files:
            for where, row in parquet_rows(path, _FIELDS) if path.suffix == ".parquet" else json_lines(path, _FIELDS):
                options = _options(where, row["options"])
                if row["answer"] not in options:
                    raise DataError(f"{where}: the answer {row['answer']!r} is none of the options {list(options)}")
                images = video_images(root / _ROOT / "data" / f"{row['videoID']}.mp4", None)
                text = "\n".join([_INSTRUCTION, row["question"], *row["options"], "The best answer is:"])
                yield (
                    where,
                    Question(
                        id=str(row["question_id"]),
                        turns=asked(f"{frame_lines(len(images))}\n{text}"),
                        images=images,
                        facts={
                            "options": options,
                            "answer": row["answer"],
                            "category": row["duration"],
                            "domain": row["domain"],
                            "task_type": row["task_type"],
                        },
                    ),
                )


def _options(where: str, lines: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for line in lines:
        match = _OPTION.fullmatch(line)
        if match is None:
            raise DataError(f"{where}: option {line!r} does not begin with a letter A to D and a dot")
        options[match[1]] = match[2]
    return options
