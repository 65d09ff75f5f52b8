"""Runs as `tools/evaluate.py` leaves them, without a model: synthetic benchmarks, and answers that are right or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark import Question
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.provenance import settle
from megatron_v2pe.evaluate.results import score
from megatron_v2pe.workshop.synthetic.benchmarks import write_benchmark

NAMES = (
    *("chartqa_human", "chartqa_augmented", "docvqa_val", "ai2d", "infovqa_val", "scienceqa", "pope", "seed"),
    *("mmbench_test_en", "mmbench_dev_en", "mmniah_long_128k", "mmniah_long_1m"),
    *(f"mmniah_test_{task}_{kind}" for task in ("retrieval", "counting", "reasoning") for kind in ("text", "image")),
    *("milebench_textneedleinahaystack", "milebench_imageneedleinahaystack", "longvqa_32k_gqa", "longvqa_40k_gqa"),
)
WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the benchmarks' data."""
    folder = tmp_path_factory.mktemp("data")
    for name in NAMES:
        write_benchmark(folder, name, questions=5)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in a folder of the test's own: images taken out of files are kept below it."""
    monkeypatch.chdir(tmp_path)


def truth(question: Question) -> str:
    """Return an answer that is right."""
    answers = question.facts.get("answers", question.facts.get("answer", ""))
    if "placed_depth" in question.facts:
        return (
            json.dumps(answers)
            if isinstance(answers, list)
            else "ABCDE"[answers]
            if isinstance(answers, int)
            else answers
        )
    return str(answers[0] if isinstance(answers, list) else answers)


@pytest.fixture
def write_run(tmp_path: Path, root: Path) -> WriteRun:
    """Return what writes a run."""

    def write(
        name: str,
        benchmarks: Sequence[str],
        said: Callable[[str, int, Question], str | Answer | None] = lambda benchmark, number, question: truth(question),
        limit: int | None = None,
        **settings: Any,
    ) -> Path:
        """Write answers and results.

        Args:
            name: of its folder.
            benchmarks: answered.
            said: benchmark, number, question -> answer; None: there is none.
            limit: questions asked of each.
            settings: beside or in place of the usual.
        """
        folder = tmp_path / name
        usual = {"checkpoint": "c0ffee" * 8, "rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "64"}
        settle(folder, {**usual, "mode": "corrected", **settings})
        for benchmark in map(create, benchmarks):
            questions = list(benchmark.questions(root))[:limit]
            log = AnswerLog(folder / benchmark.name, 0)
            for number, question in enumerate(questions):
                answer = said(benchmark.name, number, question)
                if isinstance(answer, str):
                    answer = Answer(question.id, answer, "human: ?", 9, 1, 2, 0.1, "stop")
                if answer is not None:
                    log.add(answer)
            log.close()
            score(benchmark, questions, folder / benchmark.name, root, "corrected")
        return folder

    return write
