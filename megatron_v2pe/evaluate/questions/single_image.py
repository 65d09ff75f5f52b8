"""Questions about one image each, a JSON line per question: what ChartQA to VizWiz share.

Fields: `image` (a path relative to the folder evaluation is started in), `question`, `question_id`, sometimes `answer`.
The user text is the question, a space, and the benchmark's sentence. Few-shot texts, which the published code builds
and never uses, are not built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.evaluate.benchmark import FAMILY_TILES, Benchmark, ImageRef, Needed, Question, asked
from megatron_v2pe.evaluate.questions.files import ID, VALUES, Row, demand, json_lines
from megatron_v2pe.evaluate.questions.wording import SHORT, with_image

QWEN = "https://ofasys-wlcb.oss-cn-wulanchabu.aliyuncs.com/Qwen-VL/evaluation"
"""Where the files converted by the authors of Qwen-VL are downloaded from."""
COCO = "unpack http://images.cocodataset.org/zips/{}.zip below data/coco and link it there"
"""Where photos of COCO come from."""
INTERNVL = "https://huggingface.co/OpenGVLab/InternVL/raw/main"
"""Where the files converted by the authors of InternVL are downloaded from."""

_FIELDS = {"image": str, "question": str, "question_id": ID}

TruthOf = Callable[[str, Row], Mapping[str, Any]]
"""Place and content of a line -> what is known of its answer."""


class SingleImageBenchmark(Benchmark):
    """One image, one question, one line."""

    file: Needed
    """The questions."""
    others: Sequence[Needed] = ()
    """Images and annotation files."""
    sentence: str = SHORT
    """Asked after the question; nothing if empty."""
    numbered: bool = False
    """Ids are line numbers: the published `question_id` may name the image, which several questions share."""
    submission_key: str | None = None
    """Field of the id in the file a server scores; None: scored here."""
    max_tiles = FAMILY_TILES

    @property
    def needed(self) -> Sequence[Needed]:
        """Return the question file, annotations and images."""
        return (self.file, *self.others)

    def truths(self, root: Path) -> TruthOf:
        """Return what gives the facts about an answer: by default the line's own `answer`."""
        return _own_answer if self.scorer else _no_answer

    def read(self, root: Path) -> Iterator[tuple[str, Question]]:
        """Yield a question per line."""
        truth_of = self.truths(root)
        for number, (where, row) in enumerate(json_lines(root / self.file.path, _FIELDS)):
            text = f"{row['question']} {self.sentence}" if self.sentence else row["question"]
            question = Question(
                id=str(number) if self.numbered else str(row["question_id"]),
                turns=asked(with_image(text)),
                images=(ImageRef(str(root / row["image"])),),
                facts={"question_id": row["question_id"], **truth_of(where, row)},
            )
            yield where, question

    def submission(self, root: Path, answers: Sequence[tuple[Question, str]], out: Path) -> Path | None:
        """Write the list a server scores: id and answer of each question."""
        if self.submission_key is None:
            return None
        entries = [
            {self.submission_key: self.submitted_id(question.facts["question_id"]), "answer": answer}
            for question, answer in answers
        ]
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{self.name}.json"
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
        return path

    def submitted_id(self, question_id: Any) -> Any:
        """Return how the server names a question."""
        return question_id


def _own_answer(where: str, row: Row) -> Mapping[str, Any]:
    return {"answers": demand(where, row, {"answer": (str, VALUES)})["answer"]}


def _no_answer(where: str, row: Row) -> Mapping[str, Any]:
    return {}
