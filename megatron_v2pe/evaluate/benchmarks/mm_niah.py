"""MM-NIAH: needles of text or image in long documents with images; six tasks, validation and test.

Data: https://huggingface.co/datasets/OpenGVLab/MM-NIAH as `dataset/benchmark/MM-NIAH`, `images.tar.gz` of both splits
unpacked: `mm_niah_{val,test}/annotations/{retrieval,counting,reasoning}-{text,image}.jsonl` and
`mm_niah_{val,test}/images/`. Fields: `id`, `images_list`, `context`, `question`, `answer` (text, list of numbers, or
index of the right choice), `meta` with `placed_depth`, `context_length`, `choices` or `choices_image_path`. `<image>`
in context and question must be as many as `images_list`.

User text: context and question, nothing between them; then `A. choice` lines, `A. <image>` lines for choices that are
images, and the sentence that asks for a letter; nothing more for counting; else the sentence that asks for a word or
phrase. An image has up to 5 tiles and always a thumbnail. Nothing is cut, as published. Longest contexts come first.

Not as published: an answer lost to a full memory is not written as the text "None", and a repeated run with other
ranks does not answer twice; both are the runner's matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import ImageRef, Needed, Question
from megatron_v2pe.evaluate.benchmarks.published import Mode, PublishedBenchmark, asked
from megatron_v2pe.evaluate.benchmarks.wording import IMAGE, LETTER, SHORT, lettered, option_lines
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.question_files import (
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
"""Of a line."""
_META_FIELDS: Fields = {"placed_depth": (*NUMBER, list[float]), "context_length": NUMBER}
_META_OPTIONAL: Fields = {"choices": VALUES, "choices_image_path": TEXTS}
COUNTING_TOKENS, OTHER_TOKENS = 320, 16
"""Most new tokens: of counting tasks, of the others."""

Split = Literal["val", "test"]


class MmNiah(PublishedBenchmark):
    """One task of a split."""

    scorer = "mm_niah"
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


TASKS = tuple((task, needle) for task in ("retrieval", "counting", "reasoning") for needle in ("text", "image"))
BENCHMARKS = {
    f"mmniah_{split}_{task}_{needle}": partial(MmNiah, split, task, needle)
    for split in ("val", "test")
    for task, needle in TASKS
}
"""Name -> constructor."""
