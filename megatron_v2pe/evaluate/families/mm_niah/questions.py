"""What MM-NIAH asks: needles of text or image in long documents with images; and its variant at 128K to 1M tokens.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import IMAGE, Benchmark, ImageRef, Mode, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.questions.files import (
    ID,
    NUMBER,
    TEXTS,
    VALUES,
    Fields,
    Row,
    Rows,
    demand,
    json_lines,
    optional,
)
from megatron_v2pe.evaluate.questions.wording import LETTER, SHORT, lettered, option_lines

_ROOT = "dataset/benchmark/MM-NIAH"
_SOURCE = "https://huggingface.co/datasets/OpenGVLab/MM-NIAH"
FIELDS: Fields = {
    "id": ID,
    "images_list": TEXTS,
    "context": str,
    "question": str,
    "answer": (str, int, VALUES),
    "meta": dict,
}
"""Fields a line must have."""
_META_FIELDS: Fields = {"placed_depth": (*NUMBER, list[float]), "context_length": NUMBER}
_META_OPTIONAL: Fields = {"choices": VALUES, "choices_image_path": TEXTS}
COUNTING_TOKENS, OTHER_TOKENS = 320, 16
"""Most new tokens: of counting tasks, of the others."""

Split = Literal["val", "test"]
SPLITS: tuple[Split, ...] = ("val", "test")
TASKS = tuple((task, needle) for task in ("retrieval", "counting", "reasoning") for needle in ("text", "image"))
_COUNTS = {
    ("retrieval", "text"): 3072,
    ("retrieval", "image"): 3005,
    ("counting", "text"): 3060,
    ("counting", "image"): 2713,
    ("reasoning", "text"): 3004,
    ("reasoning", "image"): 2933,
}
"""Samples of the test set by task."""
_PAPER = "MM-NIAH's paper, samples of the test set by task (17,787 in all)"


class MmNiah(Benchmark):
    """One task of a split of MM-NIAH."""

    scorer = "mm_niah"
    published_count_note = "MM-NIAH's validation tasks one by one; the six together are 3,114"
    max_tiles = 5
    thumbnail = True
    item_fields = ("task", "answer", "context_length", "placed_depth", "options")

    def __init__(self, split: Split, task: str, needle: str, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose a task.

        Args:
            split: `val` or `test`.
            task: `retrieval`, `counting` or `reasoning`.
            needle: `text` or `image`.
            mode: there is one way of asking.
            cache: nothing is stored there.
        """
        super().__init__(mode, cache)
        self.name = f"mmniah_{split}_{task}_{needle}"
        self.title = f"MM-NIAH {split} {task}-{needle}"
        self.task = f"{task}-{needle}-{split}"
        self.max_new_tokens = COUNTING_TOKENS if task == "counting" else OTHER_TOKENS
        if split == "test":
            self.published_count = PublishedCount(_COUNTS[task, needle], _PAPER)
        self._folder = f"{_ROOT}/mm_niah_{split}"
        self._file = f"{self._folder}/annotations/{task}-{needle}.jsonl"

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the task's questions and the split's images."""
        return (
            Needed(self._file, f"download {_SOURCE} as {_ROOT}"),
            Needed(f"{self._folder}/images", f"tar -xzvf {self._folder}/images.tar.gz -C {self._folder}/"),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield its questions, the longest context first."""
        yield from needle_questions(json_lines(root / self._file, FIELDS), self.task, root / self._folder / "images")


def needle_questions(rows: Rows, task: str, images: Path) -> Iterator[tuple[str, Question]]:
    """Yield a question per line in MM-NIAH's format, the longest context first.

    Args:
        rows: the lines.
        task: as the scorer names it.
        images: folder of the images.

    Raises:
        DataError: a line lacks a field, or its placeholders and images differ in number.
    """

    def length(place: tuple[str, Row]) -> Any:
        where, row = place
        optional(f"{where}: meta", row["meta"], _META_OPTIONAL)
        return demand(f"{where}: meta", row["meta"], _META_FIELDS)["context_length"]

    for where, row in sorted(rows, key=length, reverse=True):
        meta, names = row["meta"], list(row["images_list"])
        text = row["context"] + row["question"]
        options: dict[str, str] = {}
        if (places := text.count(IMAGE)) != len(names):
            raise DataError(f"{where}: {places} {IMAGE} in context and question, but images_list has {len(names)}")
        if choices := meta.get("choices"):
            options = lettered(choices)
            text = "\n".join([text, option_lines(options), LETTER])
        elif pictures := meta.get("choices_image_path"):
            options = lettered([IMAGE] * len(pictures))
            text = "\n".join([text, option_lines(options), LETTER])
            names += pictures
        elif not isinstance(row["answer"], list):
            text = f"{text}\n{SHORT}"
        yield (
            where,
            Question(
                id=str(row["id"]),
                turns=asked(text),
                images=tuple(ImageRef(str(images / name)) for name in names),
                facts={
                    "task": task,
                    "answer": row["answer"],
                    "context_length": meta["context_length"],
                    "placed_depth": meta["placed_depth"],
                    **({"options": options} if options else {}),
                },
            ),
        )


for _split in SPLITS:
    for _task, _needle in TASKS:
        _name = f"mmniah_{_split}_{_task}_{_needle}"
        BENCHMARKS.add(_name, partial(MmNiah, _split, _task, _needle))
        BENCHMARKS.also(_name, f"{_task}_{_needle}_{_split}")
        BENCHMARKS.group("mmniah", _name)
        BENCHMARKS.group(f"mmniah_{_split}", _name)
BENCHMARKS.also("mmniah", "mm_niah")


_LONG_SOURCE = "https://huggingface.co/datasets/OpenGVLab/V2PE-Data"
_LONG_IMAGES = "dataset/image/long_mr/val"
LENGTHS = ("128k", "256k", "512k", "1M")


class MmNiahLong(Benchmark):
    """One length of the long variant of MM-NIAH."""

    scorer = "mm_niah"
    published_count_note = "the long sets of V2PE-Data"
    one_length = True
    max_tiles = 12
    thumbnail = True
    max_new_tokens = OTHER_TOKENS
    item_fields = ("task", "answer", "context_length", "placed_depth", "options")

    def __init__(self, length: str, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose a length.

        Args:
            length: one of `LENGTHS`.
            mode: there is one way of asking.
            cache: nothing is stored there.
        """
        super().__init__(mode, cache)
        self.name = f"mmniah_long_{length.lower()}"
        self.title = f"MM-NIAH {length}"
        self.task = f"retrieval-image-test-{length}"
        self._folder = f"dataset/val/long_mr_{length.lower()}"

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the folders of questions and images."""
        return (
            Needed(self._folder, f"download it from {_LONG_SOURCE}"),
            Needed(_LONG_IMAGES, f"download it from {_LONG_SOURCE}"),
        )

    def check(self, root: Path) -> None:
        """Check that there are questions and images."""
        super().check(root)
        self._files(root)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield its questions, the longest context first."""
        yield from needle_questions(self._rows(root), self.task, root / _LONG_IMAGES)

    def _rows(self, root: Path) -> Rows:
        files = self._files(root)
        for path in files:
            for where, row in json_lines(path, FIELDS):
                yield where, {**row, "id": f"{path.stem}-{row['id']}"} if len(files) > 1 else row

    def _files(self, root: Path) -> list[Path]:
        files = sorted(path for path in (root / self._folder).glob("*.jsonl") if not path.name.startswith("."))
        if not files:
            raise DataError(
                f"{self.name}: data are missing:\n  {root / self._folder}/*.jsonl: download it from {_LONG_SOURCE}"
            )
        return files


for _length in LENGTHS:
    _name = f"mmniah_long_{_length.lower()}"
    BENCHMARKS.add(_name, partial(MmNiahLong, _length))
    BENCHMARKS.also(_name, f"retrieval_image_test_{_length.lower()}")
    BENCHMARKS.group("mmniah_long", _name)
BENCHMARKS.also("mmniah_long", "mm_niah_1m", "mm_niah_long")
