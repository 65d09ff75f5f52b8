"""Your own questions: a JSON lines file, named on the command line in place of a benchmark.

A line: `question` (with `<image>` where an image stands), `images` (paths relative to the file's folder; may be left
out), `answer` (text, or a list of texts each of which is right), and if wanted `id` (else the line's number),
`max_new_tokens`, `answer_begins` (text the model is given as the beginning of its answer; what it adds is scored), and
further fields, which are kept with the question. Scored by exact match, capitals, spaces and a trailing dot aside.
`tools/evaluate.py --benchmarks my_questions.jsonl` keeps its answers in `OUT/my_questions/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_v2pe.data.conversation import BEGUN
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark import ImageRef, Needed, Question
from megatron_v2pe.evaluate.benchmarks.published import Mode, PublishedBenchmark, asked
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.reading import ID, Fields, Row, demand, json_lines

SUFFIX = ".jsonl"
_FIELDS: Fields = {"question": str, "answer": (str, list)}
_OPTIONAL: Fields = {"id": ID, "images": list, "max_new_tokens": int, "answer_begins": str}


class OwnQuestions(PublishedBenchmark):
    """A file of questions."""

    scorer = "exact"

    def __init__(self, file: Path, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Name the file; other arguments as of `PublishedBenchmark`."""
        super().__init__(mode, cache)
        self.file = file
        self.name = file.name.removesuffix(SUFFIX)
        self.title = self.name

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the file."""
        return (Needed(str(self.file), "the questions named with --benchmarks"),)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line."""
        path = root / self.file
        for number, (where, row) in enumerate(json_lines(path, _FIELDS), 1):
            demand(where, row, {name: kinds for name, kinds in _OPTIONAL.items() if name in row})
            _check(where, row)
            others = {name: value for name, value in row.items() if name not in (*_FIELDS, *_OPTIONAL)}
            begun = ((BEGUN, row["answer_begins"]),) if "answer_begins" in row else ()
            yield (
                where,
                Question(
                    id=str(row.get("id", number)),
                    turns=asked(row["question"]) + begun,
                    images=tuple(ImageRef(str(path.parent / image)) for image in row.get("images", ())),
                    facts={**others, "answers": row["answer"]},
                    max_new_tokens=row.get("max_new_tokens"),
                ),
            )


def _check(where: str, row: Row) -> None:
    """Refuse values that would stop the run later."""
    answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    most = row.get("max_new_tokens", 1)
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise DataError(f"{where}: answer is {row['answer']!r}, expected text, or a list of texts that are right")
    if not all(isinstance(image, str) for image in row.get("images", ())):
        raise DataError(f"{where}: images is {row['images']!r}, expected a list of paths")
    if isinstance(most, bool) or most < 1:
        raise DataError(f"{where}: max_new_tokens is {most}, expected 1 or more")
    if not row.get("answer_begins", "x").strip():
        raise DataError(f"{where}: answer_begins is empty; leave it out where the model is to begin by itself")


def own_questions(word: str, mode: Mode = "corrected", cache: Path = CACHE) -> OwnQuestions:
    """Return the benchmark of a file.

    Raises:
        ConfigError: its name is that of a hidden file, and would give its answers none.
    """
    file = Path(word)
    if not file.name.removesuffix(SUFFIX):
        raise ConfigError(f"{word}: a file of questions needs a name before {SUFFIX}")
    return OwnQuestions(file, mode, cache)
