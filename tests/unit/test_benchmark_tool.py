"""The benchmark tool: both peers in one run, a table and JSON, errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = ["--tokens", "3000", "--images", "8", "--repeats", "2", "--strides", "random", "1/2", "256"]


@pytest.fixture
def tool(monkeypatch, capsys):
    """Calls the tool in this process: status, output, errors."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark

    def call(*argv: str) -> tuple[int, str, str]:
        status = benchmark.main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_positions_reports_both_peers(tool, tmp_path):
    threads = torch.get_num_threads()
    target = tmp_path / "positions.json"
    status, output, _ = tool("positions", "--json", str(target), *SMALL)
    assert status == 0 and torch.get_num_threads() == threads
    written = json.loads(target.read_text())
    assert written["benchmark"] == "positions" and written["machine"]["torch"] == torch.__version__
    rows = written["result"]["results"]
    assert [row["stride"] for row in rows] == ["random", "1/2", "256"]
    for row in rows:
        assert row["lattice ms"] > 0 and row["float ms"] > 0
        assert row["ratio"] >= 0  # of one digit: 0 where the machine stood still while one of the two was measured
        assert row["lattice same position"] == row["float same position"] == row["float wrong images"] == 0
        assert row["float right"] is True  # short enough
    heading, *lines = output.split("results:\n")[1].splitlines()
    assert "lattice ms" in heading and "float ms" in heading and len(lines) == 3
    assert {len(line) for line in lines} == {len(heading)}  # aligned
    assert list(tmp_path.iterdir()) == [target]


def test_positions_says_where_floats_go_wrong(tool, tmp_path):
    target = tmp_path / "far.json"
    arguments = ["--tokens", "200000", "--images", "20", "--repeats", "1", "--strides", "1"]
    assert tool("positions", *arguments, f"--json={target}")[0] == 0
    [row] = json.loads(target.read_text())["result"]["results"]
    assert row["float right"] is False
    assert 0 < row["float wrong images"] < 20  # right before 65,536, wrong beyond
    assert row["float same position"] > 0 and row["lattice same position"] == 0


def test_attention_kernels_are_right_on_the_cpu(tool, tmp_path):
    target = tmp_path / "kernels.json"
    assert tool("attention_kernels", "--device", "cpu", "--repeats", "1", "--json", str(target))[0] == 0
    rows = json.loads(target.read_text())["result"]["kernels"]
    assert {row["kernel"] for row in rows} == {"flash for the CPU", "plain, in chunks of queries"}
    assert len(rows) == 6 and all(row["error"] < 1e-4 and row["backward TFLOP/s"] > 0 for row in rows)


def test_benchmarks_are_listed_and_explain_themselves(tool):
    status, output, _ = tool("--list")
    assert status == 0 and any(line.startswith("positions ") for line in output.splitlines())
    status, output, _ = tool("--help")
    assert status == 0 and "--json FILE" in output
    with pytest.raises(SystemExit) as stop:
        tool("positions", "--help")
    assert stop.value.code == 0
    assert tool()[0] == 2


def test_the_example_of_the_help_works(tool, tmp_path, monkeypatch):
    _, output, _ = tool("--help")
    [example] = [line.strip() for line in output.splitlines() if line.startswith("  python tools/benchmark.py")][-1:]
    assert "--json positions.json" in example
    words = example.split()[1:]
    done = subprocess.run(
        [sys.executable, str(TOOLS.parent / words[0]), *words[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOOLS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "positions.json").read_text())["result"]["results"]) == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nothing"], "error: benchmark 'nothing' is none of"),
        (["positions", "--tokens", "5"], "error: 3000 images of 256 tokens need 774000 tokens, the document has 5"),
        (["positions", *SMALL[:-1], "x"], "error: rope_pos_id_stride 'x' is not a whole number"),
        (["positions", "--json", "no/such/folder.json"], "error: --json no/such/folder.json: no folder"),
    ],
)
def test_mistakes_are_one_line(argv, words, tool):
    status, output, errors = tool(*argv)
    assert status == 2 and output == "" and errors.startswith(words) and errors.count("\n") == 1


def test_wrong_arguments_of_a_benchmark_show_its_usage(tool):
    with pytest.raises(SystemExit) as stop:
        tool("positions", "--no-such-option")
    assert stop.value.code == 2


def test_checkpoints_are_saved_and_loaded_beside_megatron_core(tmp_path):
    small = ["--hidden", "64", "--layers", "1", "--repeats", "1", "--work", str(tmp_path / "work")]
    line = [sys.executable, "benchmark.py", "checkpoint", "--json", str(tmp_path / "result.json"), *small]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, cwd=TOOLS, capture_output=True, text=True, timeout=600, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = json.loads((tmp_path / "result.json").read_text())["result"]["ways"]
    assert [row["way"] for row in rows] == ["Megatron-Core", "checksums", "unchecked"]
    assert all(row["save s"] > 0 and row["load ratio"] > 0 for row in rows)
    assert not list((tmp_path / "work").iterdir())
