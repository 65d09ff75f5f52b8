"""Long-VQA: questions of 17 data sets, each among many other images, at 32K to 64K tokens.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from megatron_v2pe.data.published_layout import LONG_VQA_IMAGE, LONG_VQA_PASTE
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Benchmark, ImageRef, Mode, Needed, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.questions.files import ID, NUMBER, TEXTS, demand, json_lines, optional

_SOURCE = "https://huggingface.co/datasets/OpenGVLab/V2PE-Data"
_FIELDS = {"id": ID, "image": (str, TEXTS, type(None)), "conversations": list}
_META_FIELDS = {"context_length": NUMBER}
LENGTHS = (32, 40, 48, 56, 64)
"""Thousands of tokens."""
NEW_TOKENS = {
    **dict.fromkeys(("svqa", "tabfact", "clevr", "dvqa", "gqa"), 8),
    "okvqa": 16,
    **dict.fromkeys(("chartqa", "deepform", "docvqa", "infovqa", "kleistercharity", "vizwiz"), 32),
    **dict.fromkeys(("textcaps", "textvqa"), 64),
    **dict.fromkeys(("ocrvqa", "wikitablequestions"), 128),
    "visualmrc": 256,
}
"""Most new tokens by task."""
TASKS = tuple(sorted((*LONG_VQA_IMAGE, *LONG_VQA_PASTE)))


class LongVqa(Benchmark):
    """One task of Long-VQA at one length."""

    scorer = "longvqa"
    packages = (*Benchmark.packages, "english_words")
    published_count_note = "Long-VQA's files one by one; all 85 together are about 141,000"
    max_tiles = 12
    thumbnail = True
    item_fields = ("task", "answer")

    def __init__(self, length: int, task: str, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose task and length.

        Args:
            length: one of `LENGTHS`.
            task: one of `TASKS`.
            mode: there is one way of asking.
            cache: nothing is stored there.
        """
        super().__init__(mode, cache)
        self.name = f"longvqa_{length}k_{task}"
        self.title = f"Long-VQA {length}K {task}"
        self.task = task
        self.max_new_tokens = NEW_TOKENS[task]
        shortest = 16 if length == 32 else length - 8
        self._file = f"dataset/val/long_vqa_{length}k/val_long_vqa_{task}_{shortest}_{length}.jsonl"
        form = "image" if task in LONG_VQA_IMAGE else "paste"
        self._images = f"dataset/image/long_vqa/{form}/{task}/val"

    @property
    def needed(self) -> Sequence[Needed]:
        """Return its questions and its images."""
        return Needed(self._file, f"download it from {_SOURCE}"), Needed(self._images, f"download it from {_SOURCE}")

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line."""
        for where, row in json_lines(root / self._file, _FIELDS):
            turns = row["conversations"]
            if len(turns) < 2:
                raise DataError(f"{where}: conversations: expected a question and its answer, found {turns!r:.80}")
            asked_turn, answer_turn = (demand(f"{where}: conversations", turn, {"value": str}) for turn in turns[:2])
            paths = [row["image"]] if isinstance(row["image"], str) else row["image"] or []
            optional(where, row, {"metadata": dict})
            length = optional(f"{where}: metadata", row.get("metadata") or {}, _META_FIELDS).get("context_length")
            yield (
                where,
                Question(
                    id=str(row["id"]),
                    turns=asked(asked_turn["value"]),
                    images=tuple(ImageRef(str(root / self._images / path)) for path in paths),
                    facts={"task": self.task, "answer": answer_turn["value"], "context_length": length},
                ),
            )


for _length in LENGTHS:
    for _task in TASKS:
        _name = f"longvqa_{_length}k_{_task}"
        BENCHMARKS.add(_name, partial(LongVqa, _length, _task))
        BENCHMARKS.also(_name, f"longvqa_{_task}_{_length}")
        BENCHMARKS.group("longvqa", _name)
        BENCHMARKS.group(f"longvqa_{_length}k", _name)
    BENCHMARKS.also(f"longvqa_{_length}k", f"longvqa_{_length}")
BENCHMARKS.also("longvqa", "long_vqa")
