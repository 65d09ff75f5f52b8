"""Your own questions: a JSON lines file, named on the command line in place of a benchmark.

A line: `question` (or `prompt`), `answer` (or `answers`: text, a number, or a list of texts each of which is right),
and if wanted

- images: `image` or `images`, a path or a list of paths relative to the file's folder or, where they are not there, to
  the root of the data (`--root`), also under the other names that training reads (`foreign.media_fields`); `<image>`
  in the question says where each stands, and where none does, they stand before it (`data.tokenize`);
- `context`: text before the question, a line break between them;
- `options` or `choices`: shown beneath the question, the answer is a letter or the text of one (`own_options`);
- `id` (or `question_id`; else the line's number), `max_new_tokens`, `answer_begins` (text the model is given as the
  beginning of its answer; what it adds is scored), and further fields, which are kept with the question and named once.

Scored by exact match of the answer that is stated; capitals, spaces and a trailing dot do not count. A file whose lines
have MM-NIAH's fields (`context`, `images_list`, `question`, `answer`, `meta` with `placed_depth` and `context_length`:
those that `tools/build_long_context.py` writes into `mm_niah/`, or MM-NIAH's own) is asked and scored as MM-NIAH is:
context and question with nothing between them, up to 5 tiles and a thumbnail of an image, a letter for choices; its
images are looked for beside the file, in the folder above, and in `images` of both. Its score is the mean over the bins
of length that have samples, each the mean over the fifths of depth that have samples, in either mode: a few lengths of
one's own are not the published eleven.

`tools/evaluate.py --benchmarks my_questions.jsonl` keeps its answers in `OUT/my_questions/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.evaluate.benchmark import Benchmark, Mode, Needed, Question
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.families.mm_niah.questions import COUNTING_TOKENS, OTHER_TOKENS, MmNiah, needle_questions
from megatron_v2pe.evaluate.families.mm_niah.questions import FIELDS as NEEDLE_FIELDS
from megatron_v2pe.evaluate.families.own.lines import is_needle, needle_row, own_question
from megatron_v2pe.evaluate.questions.files import Row, Rows, demand, json_lines
from megatron_v2pe.foreign.files import check_name
from megatron_v2pe.foreign.printable import printable

logger = get_logger(__name__)

SUFFIX = ".jsonl"
_TASKS = ("retrieval", "counting", "reasoning")
_NEEDLES = ("image", "text")


class OwnQuestions(Benchmark):
    """A file of the user's own questions."""

    scorer: str | None = "exact"
    item_fields = ("answers", "options")
    own = True

    def __init__(self, file: Path, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Name the file; other arguments are those of `Benchmark`.

        How it is asked and scored is known once its questions are read: its lines say whether it is MM-NIAH's form.
        """
        super().__init__(mode, cache)
        self.file = file
        self.name = file.name.removesuffix(SUFFIX)
        self.title = self.name

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the file."""
        return (Needed(str(self.file), "the questions named with --benchmarks"),)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line; of MM-NIAH's form the longest context first."""
        path = root / self.file
        rows = ((number, where, row) for number, (where, row) in enumerate(json_lines(path, {}), 1))
        first = next(rows, None)
        if first is None:
            raise DataError(f"{printable(path)}: holds no question")
        unknown: Counter[str] = Counter()
        if is_needle(first[2]):
            self._score_as_mm_niah()
            yield from self._needles(path, first, rows)
            return
        for number, where, row in (first, *rows):
            if is_needle(row):
                raise DataError(f"{where}: of MM-NIAH's form, the first line is not; give it a file of its own")
            question, others = own_question(where, row, number, (path.parent, root))
            unknown.update(others)
            yield where, question
        if unknown:
            shown = ", ".join(
                f"{printable(name)[:60]} ({count} line{'s' * (count > 1)})" for name, count in unknown.most_common(10)
            )
            logger.warning("%s: fields that are kept and not read: %s", self.name, shown)

    def _score_as_mm_niah(self) -> None:
        self.scorer, self.item_fields = MmNiah.scorer, MmNiah.item_fields
        self.max_tiles, self.thumbnail = MmNiah.max_tiles, MmNiah.thumbnail
        self.max_new_tokens = OTHER_TOKENS

    def _needles(
        self, path: Path, first: tuple[int, str, Row], rest: Iterator[tuple[int, str, Row]]
    ) -> Iterator[tuple[str, Question]]:
        most: dict[str, int] = {}

        def checked() -> Rows:
            for number, where, row in (first, *rest):
                if not is_needle(row):
                    raise DataError(f"{where}: not of MM-NIAH's form, the first line is; give it a file of its own")
                found = demand(where, needle_row(where, row, number, path.parent), NEEDLE_FIELDS)
                most[where] = row.get("max_new_tokens") or _most_tokens(row)
                yield where, found

        for where, question in needle_questions(checked(), needle_task(path.stem), Path()):
            yield where, replace(question, max_new_tokens=most[where])


def needle_task(stem: str) -> str:
    """Return what MM-NIAH's scorer calls the task of a file: `counting-image-test` for `image_counting`."""
    kind = next((task for task in _TASKS if task in stem), None)
    needle = next((needle for needle in _NEEDLES if needle in stem), None)
    return stem if kind is None or needle is None else f"{kind}-{needle}-test"


def _most_tokens(row: Row) -> int:
    return COUNTING_TOKENS if isinstance(row["answer"], list) else OTHER_TOKENS


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
