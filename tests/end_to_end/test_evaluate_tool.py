"""Evaluating a tiny checkpoint on synthetic benchmarks: killed, resumed on another world size, scored."""

from __future__ import annotations

import json
import time

import pytest

from megatron_v2pe.testing.synthetic_benchmarks import write_benchmark
from megatron_v2pe.testing.tool_runs import command, kill, run, started

NAMES = ("chartqa_human", "pope", "scienceqa")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in NAMES:
        write_benchmark(folder, name, questions=4)
    return folder


def line(tiny, root, out, *more, processes=0):
    arguments = ["--checkpoint", tiny / "hf", "--benchmarks", *NAMES, "--out", out, "--root", root, "--window", 100000]
    arguments += ["--max-num", 2, "--converted-dir", out.parent / "converted", *more]
    return command("tools/evaluate.py", *map(str, arguments), processes=processes)


def answers(out):
    rows = {}
    for path in sorted(out.glob("*/answers-*.jsonl")):
        for text in path.read_text().splitlines():
            row = json.loads(text)
            key = (path.parent.name, row["id"])
            assert key not in rows, "asked twice"
            rows[key] = {name: value for name, value in row.items() if name != "seconds"}
    return rows


@pytest.mark.slow
def test_killed_and_resumed_elsewhere(tiny, root, tmp_path):
    whole = run(line(tiny, root, tmp_path / "whole"), tmp_path / "log")
    assert whole.status == 0, whole.output[-3000:]
    assert "INCOMPLETE" not in whole.output and "ChartQA" in whole.output
    with started(line(tiny, root, tmp_path / "killed", processes=2), tmp_path / "log2") as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "killed").is_dir() and len(answers(tmp_path / "killed")) >= 3:
                break
            time.sleep(0.01)
        kill(process)
    resumed = run(line(tiny, root, tmp_path / "killed", "--batch-size", "3"), tmp_path / "log3")
    assert resumed.status == 0, resumed.output[-3000:]
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")
    for name in NAMES:
        result = json.loads((tmp_path / "killed" / name / "results.json").read_text())
        other = json.loads((tmp_path / "whole" / name / "results.json").read_text())
        assert result == other and result["answered"] == result["questions"] > 0 and "score" in result
    other = run(line(tiny, root, tmp_path / "whole", "--max-num", "1"), tmp_path / "log4")
    assert other.status == 1 and "max_num 2 there, 1 now" in other.output


def test_what_is_missing_is_told_before_the_model_is_loaded(tiny, tmp_path):
    finished = run(line(tiny, tmp_path, tmp_path / "out"), tmp_path / "log")
    assert finished.status == 1 and "data are missing" in finished.output and "data/chartqa" in finished.output
    listed = run(command("tools/evaluate.py", "--list"), tmp_path / "log")
    assert listed.status == 0 and "mmniah_long_1m" in listed.output
