"""SEED-Bench v1: multiple choice about images and middle frames of videos; accuracy of the letter, by type.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import FAMILY_TILES, Benchmark, ImageRef, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.questions.files import ID, Row, demand, json_lines, json_records, read_json
from megatron_v2pe.evaluate.questions.single_image import INTERNVL
from megatron_v2pe.evaluate.questions.wording import with_image

BENCHMARKS.group("general", "seed")

_FOLDER = "data/SEED"
_FILE = f"{_FOLDER}/seed.jsonl"
_OFFICIAL = f"{_FOLDER}/SEED-Bench.json"
_FIELDS = {"image": str, "text": str, "question_id": ID}
_OFFICIAL_FIELDS = {"question_id": ID, "answer": str, "question_type_id": int}
_GUIDE = "https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md"


@BENCHMARKS.register("seed", "seedv1")
class Seed(Benchmark):
    """SEED-Bench v1."""

    title = "SEED-Bench"
    scorer = "seed"
    published_count = PublishedCount(
        17990, "what InternVL's guide to its evaluation prints; 14,233 of SEED-Bench's are about images"
    )
    max_tiles = FAMILY_TILES
    item_fields = ("answer", "question_type_id", "options")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return questions, official annotation and images."""
        return (
            Needed(_FILE, f"download {INTERNVL}/seed.jsonl"),
            Needed(_OFFICIAL, f"download it as {_GUIDE} says"),
            Needed(f"{_FOLDER}/SEED-Bench-image", f"download the images as {_GUIDE} says, and a frame of each video"),
        )

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line, its official answer and type beside it."""
        official = _official(root / _OFFICIAL)
        for where, row in json_lines(root / _FILE, _FIELDS):
            key = str(row["question_id"])
            if key not in official:
                raise DataError(f"{where}: {root / _OFFICIAL} has no question {key}: are they of different versions?")
            truth = official[key]
            options = {letter: truth[name] for letter in "ABCD" if (name := f"choice_{letter.lower()}") in truth}
            facts = {"answer": truth["answer"], "question_type_id": truth["question_type_id"]}
            facts |= {"options": options} if options else {}
            image = ImageRef(str(root / _FOLDER / row["image"]))
            yield where, Question(id=key, turns=asked(with_image(row["text"])), images=(image,), facts=facts)


def _official(path: Path) -> dict[str, Row]:
    content = demand(str(path), read_json(path), {"questions": list})
    records = json_records(path, content["questions"], _OFFICIAL_FIELDS)
    return {str(record["question_id"]): record for _, record in records}
