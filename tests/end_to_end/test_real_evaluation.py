"""Every evaluator for which there are real questions with images, from end to end, on a tiny checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from helpers.shared import shared_path
from helpers.tool_runs import command, run
from megatron_v2pe.evaluate.benchmark_names import create
from megatron_v2pe.evaluate.scorer_names import scorer_of

REAL = {
    "chartqa": "data/chartqa",
    "docvqa": "data/docvqa",
    "MMMU": "data/MMMU",
    "mmbench": "data/mmbench",
    "scienceqa": "data/scienceqa",
    "pope": "data/pope_aokvqa",
}
"""Folder below `data/` -> where its files are in the shared folder. POPE's own photographs are not there; its authors'
A-OKVQA questions have the same format."""
NAMES = (
    *("chartqa_human", "chartqa_augmented", "docvqa_val", "mmmu_val", "mmbench_dev", "mmbench_dev_cn", "ccbench"),
    *("scienceqa", "pope"),
)
LIMIT = 2


@pytest.fixture
def real(tmp_path) -> Path:
    """A folder to evaluate in, whose `data/` are links."""
    pytest.importorskip("pyarrow", reason="MMMU's files are Parquet: eval extra")
    (tmp_path / "data").mkdir()
    for name, place in REAL.items():
        (tmp_path / "data" / name).symlink_to(shared_path("real") / place)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_true_answers_are_right(name, real):
    """Given the answers of the files, every question scores in full, in either mode."""
    benchmark = create(name, cache=real / "cache")
    assert benchmark.scorer is not None
    items = []
    for question in benchmark.questions(real):
        truth = question.facts.get("answer", question.facts.get("answers"))
        while isinstance(truth, list):  # one of several
            truth = truth[0]
        items.append(benchmark.item(question, str(truth)))
    for mode in ("reference", "corrected"):
        assert scorer_of(benchmark.scorer).headline(items, mode) == pytest.approx(100)


@pytest.mark.slow
def test_real_questions_from_end_to_end(tiny, real, tmp_path):
    arguments = ["--checkpoint", tiny / "hf", "--benchmarks", *NAMES, "--out", tmp_path / "out", "--limit", LIMIT]
    arguments += ["--max-num", 1, "--window", 100_000, "--converted-dir", tmp_path / "converted"]
    finished = run(command("tools/evaluate.py", *map(str, arguments)), tmp_path / "log", cwd=tmp_path)
    assert finished.status == 0, finished.output[-3000:]
    assert "mmmu_val: 26 of 30 subjects are missing" in finished.output
    assert "chartqa_human: 92 questions; the published file has 1250" in finished.output
    for name in NAMES:
        result = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert result["questions"] == result["answered"] == LIMIT, result
        assert result["failed"] == result["missing"] == []
        assert math.isfinite(result["score"]) and 0 <= result["score"] <= 100
        assert ("submission" in result) == (name.startswith("mmbench") or name == "ccbench")
