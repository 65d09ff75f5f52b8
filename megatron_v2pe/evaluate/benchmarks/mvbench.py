"""MVBench: 20 tasks about short videos, multiple choice; accuracy by task.

Data: https://huggingface.co/datasets/OpenGVLab/MVBench as `dataset/benchmark/MVBench`, videos unpacked:
`json/<task>.json` (a list of `video`, `question`, `candidates`, `answer`, for some tasks `start` and `end` in seconds)
and `video/` with the folders of `TASKS`. Episodic Reasoning has folders of frames (`00001.jpg`, 3 per second), the
others video files (PyAV, the `video` extra). Questions have no id: ids here are task and number.

Shown are the middle frames of 16 equal parts of the video or clip, a tile each. User text: `Frame1: <image>` lines,
the instruction with a blank line after it, `Question: ...`, `Options:`, `(A) ...` lines, `Only give the best option.`

Not as published: the evaluator takes ranks from Slurm alone and ends with "done" where the output folder holds any
result, neither of which a benchmark decides; its lenient scoring is the scorer's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed, Question
from megatron_v2pe.evaluate.benchmarks.frames import frame_lines, video_images
from megatron_v2pe.evaluate.benchmarks.published import PublishedBenchmark, asked
from megatron_v2pe.evaluate.benchmarks.wording import lettered
from megatron_v2pe.evaluate.question_files import NUMBER, VALUES, Fields, Row, json_records, read_json

_ROOT = "dataset/benchmark/MVBench"
_INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_FIELDS: Fields = {"video": str, "question": str, "candidates": VALUES, "answer": (str, *NUMBER)}
_BOUNDED_FIELDS: Fields = {**_FIELDS, "start": NUMBER, "end": NUMBER}


@dataclass(frozen=True)
class Task:
    """One of the twenty."""

    title: str
    folder: str
    """Of its videos, below `video/`."""
    bounded: bool = False
    """Whether questions are about a clip, `start` to `end`."""

    @property
    def file(self) -> str:
        """Return the name of its questions: the title in small letters with underscores."""
        return self.title.lower().replace(" ", "_").replace("-", "_") + ".json"


_STAR, _CLEVRER, _PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"
TASKS = (
    Task("Action Sequence", _STAR, bounded=True),
    Task("Action Prediction", _STAR, bounded=True),
    Task("Action Antonym", "ssv2_video"),
    Task("Fine-grained Action", "Moments_in_Time_Raw/videos"),
    Task("Unexpected Action", "FunQA_test/test"),
    Task("Object Existence", _CLEVRER),
    Task("Object Interaction", _STAR, bounded=True),
    Task("Object Shuffle", _PERCEPTION),
    Task("Moving Direction", _CLEVRER),
    Task("Action Localization", "sta/sta_video", bounded=True),
    Task("Scene Transition", "scene_qa/video"),
    Task("Action Count", _PERCEPTION),
    Task("Moving Count", _CLEVRER),
    Task("Moving Attribute", _CLEVRER),
    Task("State Change", _PERCEPTION),
    Task("Fine-grained Pose", "nturgbd"),
    Task("Character Order", _PERCEPTION),
    Task("Egocentric Navigation", "vlnqa"),
    Task("Episodic Reasoning", "tvqa/frames_fps3_hq", bounded=True),
    Task("Counterfactual Inference", _CLEVRER),
)
"""In the published order."""


class MvBench(PublishedBenchmark):
    """All twenty tasks."""

    name = "mvbench"
    title = "MVBench"
    scorer = "mvbench"
    max_new_tokens = 1000
    dynamic_tiling = False
    item_fields = ("answer", "task_type", "candidates")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the questions of every task, and the folders of videos."""
        source = "https://huggingface.co/datasets/OpenGVLab/MVBench"
        folders = dict.fromkeys(task.folder for task in TASKS)
        return (
            *(Needed(f"{_ROOT}/json/{task.file}", f"download {source} as {_ROOT}") for task in TASKS),
            *(Needed(f"{_ROOT}/video/{folder}", f"unpack the archives of {source}/video") for folder in folders),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield the questions task by task."""
        for task in TASKS:
            path = root / _ROOT / "json" / task.file
            fields = _BOUNDED_FIELDS if task.bounded else _FIELDS
            for number, (where, row) in enumerate(json_records(path, read_json(path), fields)):
                yield where, _question(root, task, f"{task.file.removesuffix('.json')}-{number}", where, row)


def _question(root: Path, task: Task, key: str, where: str, row: Row) -> Question:
    options = lettered(row["candidates"])
    right = [letter for letter, option in options.items() if option == str(row["answer"])]
    if not right:
        raise DataError(f"{where}: the answer {row['answer']!r} is none of {list(options.values())}")
    bounds = (float(row["start"]), float(row["end"])) if task.bounded else None
    images = video_images(root / _ROOT / "video" / task.folder / row["video"], bounds)
    lines = [f"({letter}) {option}" for letter, option in options.items()]
    question = "\n".join([f"Question: {row['question']}", "Options:", *lines]).rstrip()
    return Question(
        id=key,
        turns=asked(f"{frame_lines(len(images))}\n{_INSTRUCTION}\n{question}\nOnly give the best option."),
        images=images,
        facts={
            "answer": f"({right[-1]}) {row['answer']}",
            "task_type": task.title,
            "candidates": list(options.values()),
        },
    )
