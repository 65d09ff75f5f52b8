"""MM-NIAH at 128K, 256K, 512K and 1M tokens: image retrieval, as the paper's long-context figures.

Data: https://huggingface.co/datasets/OpenGVLab/V2PE-Data, arranged as its README says: `dataset/val/long_mr_128k`,
`long_mr_256k`, `long_mr_512k`, `long_mr_1m`, JSON lines in MM-NIAH's format (every `*.jsonl` there is read), images
below `dataset/image/long_mr/val`. Where a folder holds several files, ids begin with the file's name.

User text as in MM-NIAH; an image has up to 12 tiles. The published evaluator does not run as it is: its list of tasks
is not in the repository, it calls its position function with arguments that function does not have, and
its script runs the short evaluator. It also scores with the true answer before its eyes (one forward pass over
prompt and answer). Here the model answers by itself, 16 tokens, and the answer is scored as in MM-NIAH.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.benchmark import Needed, Question
from megatron_v2pe.evaluate.benchmarks.mm_niah import FIELDS, OTHER_TOKENS, needle_questions
from megatron_v2pe.evaluate.benchmarks.published import Mode, PublishedBenchmark
from megatron_v2pe.evaluate.embedded_images import CACHE
from megatron_v2pe.evaluate.question_files import Rows, json_lines

_SOURCE = "https://huggingface.co/datasets/OpenGVLab/V2PE-Data"
_IMAGES = "dataset/image/long_mr/val"
LENGTHS = ("128k", "256k", "512k", "1M")


class MmNiahLong(PublishedBenchmark):
    """One length."""

    scorer = "mm_niah"
    max_tiles = 12
    thumbnail = True
    max_new_tokens = OTHER_TOKENS
    item_fields = ("task", "answer", "context_length", "placed_depth", "options")

    def __init__(self, length: str, mode: Mode = "corrected", cache: Path = CACHE) -> None:
        """Choose a length.

        Args:
            length: one of `LENGTHS`.
            mode: there is one way of asking.
            cache: nothing is stored there.
        """
        super().__init__(mode, cache)
        self.name = f"mmniah_long_{length.lower()}"
        self.title = f"MM-NIAH {length}"
        self.task = f"retrieval-image-test-{length}"
        self._folder = f"dataset/val/long_mr_{length.lower()}"

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the folders of questions and images."""
        return (
            Needed(self._folder, f"download it from {_SOURCE}"),
            Needed(_IMAGES, f"download it from {_SOURCE}"),
        )

    def check(self, root: Path) -> None:
        """Check that there are questions and images."""
        super().check(root)
        self._files(root)

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield its questions, the longest context first."""
        yield from needle_questions(self._rows(root), self.task, root / _IMAGES)

    def _rows(self, root: Path) -> Rows:
        files = self._files(root)
        for path in files:
            for where, row in json_lines(path, FIELDS):
                yield where, {**row, "id": f"{path.stem}-{row['id']}"} if len(files) > 1 else row

    def _files(self, root: Path) -> list[Path]:
        files = sorted(path for path in (root / self._folder).glob("*.jsonl") if not path.name.startswith("."))
        if not files:
            raise DataError(
                f"{self.name}: data are missing:\n  {root / self._folder}/*.jsonl: download it from {_SOURCE}"
            )
        return files


BENCHMARKS = {f"mmniah_long_{length.lower()}": partial(MmNiahLong, length) for length in LENGTHS}
"""Name -> constructor."""
