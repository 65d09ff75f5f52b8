"""POPE: is something in the photo, yes or no; F1 of three categories.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import FAMILY_TILES, Benchmark, ImageRef, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.questions.files import ID, json_lines
from megatron_v2pe.evaluate.questions.single_image import COCO
from megatron_v2pe.evaluate.questions.wording import with_image

BENCHMARKS.group("general", "pope")

_FILE = "data/pope/llava_pope_test.jsonl"
_CATEGORIES = ("random", "popular", "adversarial")
_FIELDS = {"question_id": ID, "image": str, "text": str, "category": str}
_LABEL_FIELDS = {"image": str, "text": str, "label": str}
_COMMIT = "e3e39262c85a6a83f26cf5094022a782cb0df58d"

_Key = tuple[str, str, str]
"""Category, image, question."""


@BENCHMARKS.register("pope")
class Pope(Benchmark):
    """POPE with all of its three categories."""

    title = "POPE"
    scorer = "pope"
    published_count = PublishedCount(8910, "the three label files at commit e3e39262: 2,910, 3,000 and 3,000")
    max_tiles = FAMILY_TILES
    item_fields = ("answer", "category")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return questions, labels and images."""
        source = f"https://github.com/AoiDragon/POPE/raw/{_COMMIT}/output/coco"
        return (
            Needed(_FILE, "download it from https://github.com/OpenGVLab/InternVL/releases/tag/data"),
            *(Needed(_labels_of(name), f"download {source}/coco_pope_{name}.json") for name in _CATEGORIES),
            Needed("data/pope/val2014", COCO.format("val2014")),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line, its label beside it."""
        labels = {key: label for name in _CATEGORIES for key, label in _read_labels(root, name)}
        for where, row in json_lines(root / _FILE, _FIELDS):
            key = (row["category"], row["image"], row["text"].split("\n")[0])
            if key not in labels:
                raise DataError(
                    f"{where}: no label for {key[2]!r} about {key[1]} in {root / _labels_of(key[0])}; the label files "
                    f"belong to these questions at commit {_COMMIT}"
                )
            yield (
                where,
                Question(
                    id=str(row["question_id"]),
                    turns=asked(with_image(f"{row['text']} ")),
                    images=(ImageRef(str(root / "data/pope/val2014" / row["image"])),),
                    facts={"answer": labels.pop(key), "category": row["category"]},
                ),
            )
        if labels:
            category, image, text = next(iter(labels))
            raise DataError(
                f"{root / _labels_of(category)}: {len(labels)} labels have no question in {root / _FILE}, the first is "
                f"{text!r} about {image}"
            )


def _labels_of(category: str) -> str:
    return f"data/pope/coco/coco_pope_{category}.json"


def _read_labels(root: Path, category: str) -> Iterator[tuple[_Key, str]]:
    for where, row in json_lines(root / _labels_of(category), _LABEL_FIELDS):
        if row["label"] not in ("yes", "no"):
            raise DataError(f"{where}: label {row['label']!r} is neither 'yes' nor 'no'")
        yield (category, row["image"], row["text"]), row["label"]
