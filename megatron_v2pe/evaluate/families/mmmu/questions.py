"""MMMU: college exam questions over 30 subjects, with up to 7 images; accuracy by subject and discipline.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import (
    FAMILY_TILES,
    IMAGE,
    Benchmark,
    ImageRef,
    Needed,
    PublishedCount,
    Question,
    asked,
)
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import store_image
from megatron_v2pe.evaluate.questions.files import Fields, Row, Rows, json_lines, literal_list, parquet_rows
from megatron_v2pe.evaluate.questions.wording import LETTER, SHORT, lettered, option_lines

logger = get_logger(__name__)

BENCHMARKS.group("general", "mmmu_val")
BENCHMARKS.group("mmmu", "mmmu_val")

_FOLDER = "data/MMMU"
_CARD = "MMMU's card on the Hugging Face hub"
_SOURCE = "https://huggingface.co/datasets/MMMU/MMMU"
_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_FIELDS: Fields = {
    **dict.fromkeys(("id", "question", "options", "answer", "question_type"), str),
    **dict.fromkeys(_IMAGES, object),
}
SUBJECTS = (
    *("Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science"),
    *("Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design"),
    *("Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography"),
    *("History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music"),
    *("Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology"),
)
"""In the published order."""


class Mmmu(Benchmark):
    """What MMMU's three splits have in common."""

    split: str
    packages = (*Benchmark.packages, "pyarrow")
    max_tiles = FAMILY_TILES
    max_new_tokens = 10
    item_fields = ("data_id", "question_type", "options", "answer")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the folder of the subjects."""
        return (Needed(_FOLDER, f"download {_SOURCE} there"),)

    def check(self, root: Path) -> None:
        """Check that at least one subject is there; absent ones are logged."""
        super().check(root)
        missing = [subject for subject in SUBJECTS if not _files(root, subject, self.split)]
        if len(missing) == len(SUBJECTS):
            files = f"{root / _FOLDER}/<Subject>/{self.split}-*.parquet"
            raise DataError(f"{self.name}: data are missing:\n  {files}: download {_SOURCE}")
        if missing:
            logger.warning("%s: %d of %d subjects are missing: %s", self.name, len(missing), len(SUBJECTS), missing)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield the questions of every subject that is there."""
        for subject in SUBJECTS:
            for path in _files(root, subject, self.split):
                for where, row in _rows(path):
                    yield where, self._question(where, row, path)

    def _question(self, where: str, row: Row, path: Path) -> Question:
        options = lettered([str(option).strip() for option in literal_list(where, row["options"])])
        text = "\n".join([row["question"].strip(), *([option_lines(options), LETTER] if options else [SHORT])])
        images = [self._path(where, row[name], path) for name in _IMAGES if row[name] is not None]
        joined = self.mode == "reference" and len(images) > 1
        if self.mode == "reference":
            text = f"{IMAGE}\n{text}"
        else:
            text = ", ".join(f"The <image {number}> is {IMAGE}" for number in range(1, len(images) + 1)) + f"\n{text}"
        kind = "multiple-choice" if options else "open"
        return Question(
            id=row["id"],
            turns=asked(text),
            images=tuple(
                ImageRef(image, max_tiles=1) if number else ImageRef(image, enlarge=2)
                for number, image in enumerate(images)
            ),
            facts={
                "data_id": row["id"],
                "question_type": kind,
                **({"options": options} if options else {}),
                **({"answer": _truth(where, kind, row["answer"])} if self.scorer else {}),
            },
            joined=joined,
        )

    def _path(self, where: str, image: Any, path: Path) -> str:
        if isinstance(image, str):
            return str(path.parent / image)
        if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
            raise DataError(f"{where}: an image column that holds neither a path nor an image's bytes")
        return store_image(image["bytes"], self.cache, where)


@BENCHMARKS.register("mmmu_dev")
class MmmuDev(Mmmu):
    """The development split of MMMU: five questions a subject."""

    title = "MMMU dev"
    scorer = "mmmu_full"
    published_count = PublishedCount(150, _CARD)
    split = "dev"


@BENCHMARKS.register("mmmu_val", "mmmu_validation")
class MmmuVal(Mmmu):
    """The validation split of MMMU."""

    title = "MMMU val"
    scorer = "mmmu_full"
    published_count = PublishedCount(900, _CARD)
    split = "validation"


@BENCHMARKS.register("mmmu_test")
class MmmuTest(Mmmu):
    """The test split of MMMU, which the server scores: it wants a JSON object of id and answer."""

    title = "MMMU test"
    scorer = None
    published_count = PublishedCount(10500, _CARD)
    split = "test"

    def submission(self, root: Path, answers: Sequence[tuple[Question, str]], out: Path) -> Path:
        """Write the answers by id."""
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.name}.json"
        content = {question.id: answer for question, answer in answers}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=4), encoding="utf-8")
        return path


def _files(root: Path, subject: str, split: str) -> list[Path]:
    """Return the files of a subject: Parquet, or else JSON lines."""
    folder = root / _FOLDER / subject
    return sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.jsonl"))


def _rows(path: Path) -> Rows:
    return parquet_rows(path, _FIELDS) if path.suffix == ".parquet" else json_lines(path, _FIELDS)


def _truth(where: str, kind: str, answer: str) -> str | list[Any]:
    """Return the true answer; three open questions have a list of them, in Python's notation."""
    return literal_list(where, answer) if kind == "open" and answer.startswith("[") else answer
