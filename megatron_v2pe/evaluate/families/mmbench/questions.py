"""MMBench in English and Chinese, and CCBench: multiple choice, each question asked with its options in turn.

README.md says where the data come from, what their layout is, and where the published code is not followed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import FAMILY_TILES, Benchmark, ImageRef, Needed, PublishedCount, Question, asked
from megatron_v2pe.evaluate.benchmark_registry import BENCHMARKS
from megatron_v2pe.evaluate.embedded_images import store_image
from megatron_v2pe.evaluate.questions.files import tsv_rows
from megatron_v2pe.evaluate.questions.server_table import write_table
from megatron_v2pe.evaluate.questions.wording import LETTER, LETTER_CN, option_lines, with_image

BENCHMARKS.group("general", "mmbench_test_en")
BENCHMARKS.group("mmbench", "mmbench_dev_en", "mmbench_dev_cn")

_OPEN_COMPASS = "the tables OpenCompass publishes, a row per question"
_LETTERS = ("A", "B", "C", "D", "E")
_REQUIRED = ("index", "image", "question", "A", "B")
_SOURCE = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_PANDAS_EMPTY = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"),
    *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Cells pandas takes for empty."""


class MmBench(Benchmark):
    """What MMBench's files have in common; each file is a class below."""

    file: str
    """Its name below `data/mmbench`."""
    source: str = _SOURCE
    sentence: str = LETTER
    left_out: Sequence[str] = ("hint", "category", "source", "image", "comment", "l2-category")
    """Columns the server's table lacks."""
    prediction_column: int = 6
    """Where `prediction` stands in it, counted from 0."""
    packages = (*Benchmark.packages, "openpyxl")
    max_tiles = FAMILY_TILES
    item_fields = ("index", "options", "answer", "category", "l2-category")

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the table."""
        return (Needed(f"data/mmbench/{self.file}", f"download {self.source}/{self.file}"),)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per row."""
        empty = _PANDAS_EMPTY if self.mode == "reference" else ("",)
        required = _REQUIRED + (("answer",) if self.scorer else ())
        for where, row in tsv_rows(root / "data/mmbench" / self.file, required):
            if not is_whole_number(row["index"], digits=15):
                raise DataError(f"{where}: index {row['index'][:40]!r} is not a number")
            options = {letter: row[letter] for letter in _LETTERS if row.get(letter, "") not in empty}
            hint = [row["hint"]] if row.get("hint", "") not in empty else []
            text = "\n".join([*hint, row["question"], option_lines(options), self.sentence])
            if self.scorer and row["answer"] not in options:
                raise DataError(f"{where}: the answer {row['answer']!r} is none of the options {list(options)}")
            image = store_image(_decoded(where, row["image"]), self.cache, where)
            facts: dict[str, Any] = {"index": int(row["index"]), "options": options}
            facts |= {name: row[name] for name in ("category", "l2-category") if name in row}
            facts |= {"answer": row["answer"]} if self.scorer else {}
            yield (
                where,
                Question(id=row["index"], turns=asked(with_image(text)), images=(ImageRef(image),), facts=facts),
            )

    def submission(self, root: Path, answers: Sequence[tuple[Question, str]], out: Path) -> Path:
        """Write the server's table."""
        letters = {question.id: self._letter(answer, question.facts["options"]) for question, answer in answers}
        source = root / "data/mmbench" / self.file
        rows = [row for _, row in tsv_rows(source, _REQUIRED)]
        columns = [column for column in rows[0] if column not in self.left_out] if rows else []
        columns.insert(self.prediction_column, "prediction")
        table = [{**row, "prediction": letters.get(row["index"], "")} for row in rows]
        out.mkdir(parents=True, exist_ok=True)
        return write_table(out / f"{self.name}.xlsx", columns, table)

    def _letter(self, answer: str, options: Mapping[str, str]) -> str:
        """Return the letter an answer names; the whole answer, as published, where it names none."""
        # The scorers need the `eval` extra, as the table does; asking does not.
        from megatron_v2pe.evaluate.scorers.multiple_choice import first_letter
        from megatron_v2pe.evaluate.scorers.stated_option import named_letter

        if not answer.strip():
            return ""
        if self.mode == "reference":
            return first_letter(answer, options)
        return named_letter(answer, options) or answer.strip()


@BENCHMARKS.register("mmbench_dev", "mmbench_dev_20230712")
class MmBenchDev(MmBench):
    """The development split of MMBench from July 2023."""

    title = "MMBench dev (2023-07-12)"
    scorer = "mmbench"
    published_count = PublishedCount(4377, _OPEN_COMPASS)
    file = "mmbench_dev_20230712.tsv"


@BENCHMARKS.register("mmbench_dev_en", "mmbench_dev_en_20231003")
class MmBenchDevEn(MmBench):
    """The English development split of MMBench."""

    title = "MMBench dev EN"
    scorer = "mmbench"
    published_count = PublishedCount(4329, _OPEN_COMPASS)
    file = "mmbench_dev_en_20231003.tsv"


@BENCHMARKS.register("mmbench_dev_cn", "mmbench_dev_cn_20231003")
class MmBenchDevCn(MmBench):
    """The Chinese development split of MMBench."""

    title = "MMBench dev CN"
    scorer = "mmbench"
    published_count = PublishedCount(4329, _OPEN_COMPASS)
    file = "mmbench_dev_cn_20231003.tsv"
    sentence = LETTER_CN


@BENCHMARKS.register("mmbench_test_en", "mmbench_test_en_20231003")
class MmBenchTestEn(MmBench):
    """The English test split of MMBench, which the server scores."""

    title = "MMBench test EN"
    scorer = None
    published_count = PublishedCount(6666, _OPEN_COMPASS)
    file = "mmbench_test_en_20231003.tsv"


@BENCHMARKS.register("mmbench_test_cn", "mmbench_test_cn_20231003")
class MmBenchTestCn(MmBench):
    """The Chinese test split of MMBench, which the server scores."""

    title = "MMBench test CN"
    scorer = None
    published_count = PublishedCount(6666, _OPEN_COMPASS)
    file = "mmbench_test_cn_20231003.tsv"
    sentence = LETTER_CN


@BENCHMARKS.register("ccbench", "ccbench_dev", "ccbench_dev_cn")
class CcBench(MmBench):
    """CCBench: questions about Chinese culture, in a file like MMBench's."""

    title = "CCBench"
    scorer = "mmbench"
    published_count = PublishedCount(2040, _OPEN_COMPASS)
    file = "CCBench_legacy.tsv"
    source = "http://opencompass.openxlab.space/utils/MMBench"
    sentence = LETTER_CN
    left_out = ("category", "image")
    prediction_column = 8


def _decoded(where: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DataError(f"{where}: column 'image' is not base64: {error}") from error
