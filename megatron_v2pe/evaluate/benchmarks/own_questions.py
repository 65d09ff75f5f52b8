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
from megatron_v2pe.evaluate.reading import ID, TEXTS, Fields, Row, demand, json_lines
from megatron_v2pe.foreign.files import check_name
from megatron_v2pe.foreign.printable import printable

SUFFIX = ".jsonl"
MOST_NEW_TOKENS = 1_000_000
_FIELDS: Fields = {"question": str, "answer": (str, TEXTS)}
_OPTIONAL: Fields = {"id": ID, "images": TEXTS, "max_new_tokens": int, "answer_begins": str}


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
    if not answers or not all(answer.strip() for answer in answers):
        raise DataError(
            f"{where}: answer is {printable(row['answer'])[:60]!r}, expected text, or a list of texts that are right"
        )
    if not 1 <= most <= MOST_NEW_TOKENS:
        raise DataError(f"{where}: max_new_tokens is {most}, expected between 1 and {MOST_NEW_TOKENS}")
    if not row.get("answer_begins", "x").strip():
        raise DataError(f"{where}: answer_begins is empty; leave it out where the model is to begin by itself")


def own_questions(word: str, mode: Mode = "corrected", cache: Path = CACHE) -> OwnQuestions:
    """Return the benchmark of a file.

    Raises:
        ConfigError: its name without the suffix is none for the folder of its answers.
    """
    file = Path(word)
    if not (name := file.name.removesuffix(SUFFIX)):
        raise ConfigError(f"{printable(word)}: a file of questions needs a name before {SUFFIX}")
    source = f"--benchmarks {printable(word)}"
    if check_name(name, source, ConfigError).startswith("."):
        raise ConfigError(f"{source}: refused: a name that begins with a dot would hide the folder of its answers")
    return OwnQuestions(file, mode, cache)
