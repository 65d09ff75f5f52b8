"""What MVBench and Video-MME ask: multiple choice about videos.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Benchmark, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.families.videos.frames import frame_lines, video_images
from megatron_v2pe.evaluate.questions.files import (
    NUMBER,
    TEXTS,
    VALUES,
    Fields,
    Row,
    json_lines,
    json_records,
    parquet_rows,
    read_json,
)
from megatron_v2pe.evaluate.questions.wording import lettered

_MVBENCH = "dataset/benchmark/MVBench"
_MVBENCH_INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_MVBENCH_FIELDS: Fields = {"video": str, "question": str, "candidates": VALUES, "answer": (str, *NUMBER)}
_CLIP_FIELDS: Fields = {**_MVBENCH_FIELDS, "start": NUMBER, "end": NUMBER}


@dataclass(frozen=True)
class MvBenchTask:
    """One of MVBench's twenty tasks."""

    title: str
    folder: str
    """Folder of its videos, below `video/`."""
    bounded: bool = False
    """Whether questions are about a clip, `start` to `end`."""

    @property
    def file(self) -> str:
        """Return the name of its questions: the title in small letters with underscores."""
        return self.title.lower().replace(" ", "_").replace("-", "_") + ".json"


_STAR, _CLEVRER, _PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"
MVBENCH_TASKS = (
    MvBenchTask("Action Sequence", _STAR, bounded=True),
    MvBenchTask("Action Prediction", _STAR, bounded=True),
    MvBenchTask("Action Antonym", "ssv2_video"),
    MvBenchTask("Fine-grained Action", "Moments_in_Time_Raw/videos"),
    MvBenchTask("Unexpected Action", "FunQA_test/test"),
    MvBenchTask("Object Existence", _CLEVRER),
    MvBenchTask("Object Interaction", _STAR, bounded=True),
    MvBenchTask("Object Shuffle", _PERCEPTION),
    MvBenchTask("Moving Direction", _CLEVRER),
    MvBenchTask("Action Localization", "sta/sta_video", bounded=True),
    MvBenchTask("Scene Transition", "scene_qa/video"),
    MvBenchTask("Action Count", _PERCEPTION),
    MvBenchTask("Moving Count", _CLEVRER),
    MvBenchTask("Moving Attribute", _CLEVRER),
    MvBenchTask("State Change", _PERCEPTION),
    MvBenchTask("Fine-grained Pose", "nturgbd"),
    MvBenchTask("Character Order", _PERCEPTION),
    MvBenchTask("Egocentric Navigation", "vlnqa"),
    MvBenchTask("Episodic Reasoning", "tvqa/frames_fps3_hq", bounded=True),
    MvBenchTask("Counterfactual Inference", _CLEVRER),
)
"""In the published order."""


@BENCHMARKS.register("mvbench")
class MvBench(Benchmark):
    """MVBench with all of its twenty tasks."""

    title = "MVBench"
    scorer = "mvbench"
    published_count = PublishedCount(4000, "MVBench's paper: 20 tasks of 200")
    max_new_tokens = 1000
    dynamic_tiling = False
    item_fields = ("answer", "task_type", "candidates")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the questions of every task, and the folders of videos."""
        source = "https://huggingface.co/datasets/OpenGVLab/MVBench"
        folders = dict.fromkeys(task.folder for task in MVBENCH_TASKS)
        return (
            *(Needed(f"{_MVBENCH}/json/{task.file}", f"download {source} as {_MVBENCH}") for task in MVBENCH_TASKS),
            *(Needed(f"{_MVBENCH}/video/{folder}", f"unpack the archives of {source}/video") for folder in folders),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield the questions task by task."""
        for task in MVBENCH_TASKS:
            path = root / _MVBENCH / "json" / task.file
            fields = _CLIP_FIELDS if task.bounded else _MVBENCH_FIELDS
            for number, (where, row) in enumerate(json_records(path, read_json(path), fields)):
                yield where, _mvbench_question(root, task, f"{task.file.removesuffix('.json')}-{number}", where, row)


def _mvbench_question(root: Path, task: MvBenchTask, key: str, where: str, row: Row) -> Question:
    options = lettered(row["candidates"])
    right = [letter for letter, option in options.items() if option == str(row["answer"])]
    if not right:
        raise DataError(f"{where}: the answer {row['answer']!r} is none of {list(options.values())}")
    bounds = (float(row["start"]), float(row["end"])) if task.bounded else None
    images = video_images(root / _MVBENCH / "video" / task.folder / row["video"], bounds)
    lines = [f"({letter}) {option}" for letter, option in options.items()]
    question = "\n".join([f"Question: {row['question']}", "Options:", *lines]).rstrip()
    return Question(
        id=key,
        turns=asked(f"{frame_lines(len(images))}\n{_MVBENCH_INSTRUCTION}\n{question}\nOnly give the best option."),
        images=images,
        facts={
            "answer": f"({right[-1]}) {row['answer']}",
            "task_type": task.title,
            "candidates": list(options.values()),
        },
    )


_VIDEO_MME = "data/Video-MME"
_VIDEO_MME_SOURCE = "https://huggingface.co/datasets/lmms-lab/Video-MME"
_VIDEO_MME_FIELDS: Fields = {
    **dict.fromkeys(("question_id", "videoID", "question", "answer", "duration", "domain", "task_type"), str),
    "options": TEXTS,
}
_VIDEO_MME_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
_OPTION = re.compile(r"([A-D])\.\s*(.*)", re.DOTALL)


@BENCHMARKS.register("videomme", "video_mme")
class VideoMme(Benchmark):
    """Video-MME, asked without subtitles."""

    title = "Video-MME"
    packages = (*Benchmark.packages, "pyarrow")
    scorer = "mmbench"
    published_count = PublishedCount(2700, "Video-MME's paper: 900 videos, three questions each")
    max_new_tokens = 16
    dynamic_tiling = False
    item_fields = ("options", "answer", "category")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the folders of questions and videos."""
        return (
            Needed(f"{_VIDEO_MME}/videomme", f"download {_VIDEO_MME_SOURCE} as {_VIDEO_MME}"),
            Needed(f"{_VIDEO_MME}/data", f"unpack the archives of {_VIDEO_MME_SOURCE}: <videoID>.mp4"),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per row."""
        folder = root / _VIDEO_MME / "videomme"
        files = sorted(folder.glob("test-*.parquet")) or [folder / "test.jsonl"]
        for path in files:
            for where, row in (
                parquet_rows(path, _VIDEO_MME_FIELDS)
                if path.suffix == ".parquet"
                else json_lines(path, _VIDEO_MME_FIELDS)
            ):
                options = _options(where, row["options"])
                if row["answer"] not in options:
                    raise DataError(f"{where}: the answer {row['answer']!r} is none of the options {list(options)}")
                images = video_images(root / _VIDEO_MME / "data" / f"{row['videoID']}.mp4", None)
                text = "\n".join([_VIDEO_MME_INSTRUCTION, row["question"], *row["options"], "The best answer is:"])
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
