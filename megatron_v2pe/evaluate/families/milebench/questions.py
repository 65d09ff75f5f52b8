"""MileBench: 29 sets of questions about several images in long contexts.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import IMAGE, Benchmark, ImageRef, Mode, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.questions.files import ID, TEXTS, VALUES, Row, demand, json_records, optional, read_json
from megatron_v2pe.evaluate.questions.wording import LETTER, lettered, option_lines

_ROOT = "dataset/benchmark/MileBench"
_SOURCE = "https://huggingface.co/datasets/FreedomIntelligence/MileBench"
SETS = (
    *("ActionLocalization", "ActionPrediction", "ActionSequence", "CharacterOrder", "CounterfactualInference"),
    *("EgocentricNavigation", "MovingAttribute", "MovingDirection", "ObjectExistence", "ObjectInteraction"),
    *("ObjectShuffle", "SceneTransition", "StateChange"),
    *("ALFRED", "CLEVR-Change", "DocVQA", "IEdit", "MMCoQA", "MultiModalQA", "nuscenes", "OCR-VQA", "SlideVQA"),
    *("Spot-the-Diff", "TQA", "WebQA", "WikiVQA", "TextNeedleInAHaystack", "ImageNeedleInAHaystack", "GPR1200"),
)
"""Temporal, semantic, needles, retrieval."""
_COUNT = 200
"""Questions of a set, unless stated."""
_COUNTS = {"TextNeedleInAHaystack": 320, "ImageNeedleInAHaystack": 320, "GPR1200": 600}
_CARD = "MileBench's card on the Hugging Face hub (6,440 in all)"
_KINDS = {"open-ended": "rouge", "multi-choice": "multichoice"}
"""How a set is scored, by its `question_type`."""
_META_FIELDS = {"question_type": str, "task_instruction": (list, dict)}
_FIELDS = {"sample_id": ID, "task_instruction_id": ID, "task_instance": dict, "response": object}
_INSTANCE_FIELDS = {"context": str, "images_path": TEXTS}
_INSTANCE_OPTIONAL = {"choice_list": VALUES}
_PLACE = re.compile(r"\{(?:image|table)#(\d{1,9})\}")
_WITHOUT_LETTERS = "GPR1200"
"""It has more choices than there are letters."""


class MileBench(Benchmark):
    """One of MileBench's sets."""

    scorer = "milebench"
    packages = (*Benchmark.packages, "rouge")
    max_new_tokens = 32
    dynamic_tiling = False
    item_fields = ("dataset", "kind", "answer", "choices", "n_images")

    def __init__(self, dataset: str, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose a set.

        Args:
            dataset: its published name.
            mode: what becomes of surplus images, see above.
            cache: nothing is stored there.
        """
        super().__init__(mode, cache)
        self.dataset = dataset
        self.name = name_of(dataset)
        self.title = f"MileBench {dataset}"
        self.published_count = PublishedCount(_COUNTS.get(dataset, _COUNT), _CARD)
        self._folder = f"{_ROOT}/{dataset}"

    @property
    def needed(self) -> Sequence[Needed]:
        """Return its file and its images."""
        obtain = f"unpack MileBench_part*.tar.gz of {_SOURCE} into {_ROOT}"
        return (Needed(f"{self._folder}/{self.dataset}.json", obtain), Needed(f"{self._folder}/images", obtain))

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield its questions, those with fewest images first."""
        path = root / self._folder / f"{self.dataset}.json"
        content = demand(str(path), read_json(path), {"meta_data": dict, "data": list})
        meta = demand(f"{path}: meta_data", content["meta_data"], _META_FIELDS)
        kind = _kind(path, self.dataset, meta["question_type"])
        rows: list[tuple[str, Row]] = []
        for where, row in json_records(path, content["data"], _FIELDS):
            demand(f"{where}: task_instance", row["task_instance"], _INSTANCE_FIELDS)
            optional(f"{where}: task_instance", row["task_instance"], _INSTANCE_OPTIONAL)
            rows.append((where, row))
        for where, row in sorted(rows, key=lambda place: len(place[1]["task_instance"]["images_path"])):
            instruction = _instruction(where, meta["task_instruction"], row["task_instruction_id"])
            yield where, self._question(where, row, instruction, kind, root / self._folder / "images")

    def _question(self, where: str, row: Row, instruction: str, kind: str, folder: Path) -> Question:
        instance = row["task_instance"]
        paths, choices = list(instance["images_path"]), instance.get("choice_list")
        context = _PLACE.sub(lambda match: IMAGE if 1 <= int(match[1]) <= len(paths) else match[0], instance["context"])
        if choices is not None:
            lines = (
                "\n".join(map(str, choices)) if self.dataset == _WITHOUT_LETTERS else option_lines(lettered(choices))
            )
            context = f"{context}\nChoice list: \n{lines}\n{LETTER}"
        surplus = len(paths) - context.count(IMAGE)
        if surplus < 0:
            raise DataError(f"{where}: {context.count(IMAGE)} places for images, but images_path has {len(paths)}")
        if surplus > 1 and self.mode == "reference":
            paths, surplus = paths[surplus - 1 :], 1
        facts: dict[str, Any] = {"dataset": self.dataset, "kind": kind, "answer": str(row["response"])}
        facts |= {"choices": list(choices)} if choices is not None and kind == "multichoice" else {}
        return Question(
            id=str(row["sample_id"]),
            turns=asked(f"{instruction}\n{IMAGE * surplus}{context}"),
            images=tuple(ImageRef(str(folder / path)) for path in paths),
            facts={**facts, "n_images": len(instance["images_path"])},
        )


def name_of(dataset: str) -> str:
    """Return the name of a set on the command line."""
    return "milebench_" + dataset.lower().replace("-", "_")


def _kind(path: Path, dataset: str, question_type: str) -> str:
    """Return how a set is scored."""
    if question_type not in _KINDS:
        raise DataError(f"{path}: question_type {question_type!r}, expected {' or '.join(_KINDS)}")
    if dataset.endswith("NeedleInAHaystack"):
        return "needle"
    return "mmcoqa" if dataset == "MMCoQA" else _KINDS[question_type]


def _instruction(where: str, instructions: Any, key: Any) -> str:
    """Return an instruction from a list by its place, or from an object by its name."""
    try:
        instruction = instructions[str(key)] if isinstance(instructions, dict) else instructions[int(key)]
    except (LookupError, TypeError, ValueError):
        instruction = None
    if not isinstance(instruction, str):
        raise DataError(f"{where}: task_instruction_id {key!r} is none of the task_instruction of the file")
    return instruction


for _dataset in SETS:
    BENCHMARKS.add(name_of(_dataset), partial(MileBench, _dataset))
    BENCHMARKS.group("milebench", name_of(_dataset))
