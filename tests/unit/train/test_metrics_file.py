"""Rows of metrics are appended, never rewritten; what an interrupted run wrote too much is passed over by readers."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import DataError
from megatron_v2pe.train.metrics_file import MetricsFile, read_metrics


def write(path, start, steps):
    file = MetricsFile(path, start)
    for step in steps:
        file.write({"iteration": step, "loss": step / 10})
    file.close()


def steps_of(path):
    return [row["iteration"] for row in read_metrics(path, numbers=("loss",))]


def test_a_resumed_run_marks_where_it_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3, 4])
    before = path.read_bytes()
    write(path, 2, [3])
    assert path.read_bytes().startswith(before)
    assert steps_of(path) == [1, 2, 3], "step 4 was not done again"
    assert read_metrics(path)[-1]["resumed_from"] == 2 and "resumed_from" not in read_metrics(path)[0]
    write(path, 3, [4, 5])
    assert steps_of(path) == [1, 2, 3, 4, 5]
    write(path, 0, [1])
    assert steps_of(path) == [1], "a run that began anew in the same folder"


def test_a_run_that_ends_before_its_first_row_leaves_the_file_as_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2])
    before = path.read_bytes()
    write(path, 1, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_cut_off_by_a_kill_is_removed(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2])
    first = path.read_bytes().index(b"\n") + 1
    with path.open("r+b") as stream:
        stream.truncate(first + cut)
    assert steps_of(path) == [1]
    write(path, 1, [2])
    assert steps_of(path) == [1, 2] and path.read_bytes().count(b"\n") == 2


def test_a_very_long_torn_line_and_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 200_000)
    write(path, 0, [1])
    assert steps_of(path) == [1]
    path.write_bytes(b"")
    write(path, 0, [1])
    assert steps_of(path) == [1]


@pytest.mark.parametrize("line", ['{"iteration": 1}', '{"iteration": -1, "loss": 1}', "[]", "{", '{"iteration": true}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "loss": 1}\n' + line + "\n" + '{"iteration": 3, "loss": 1}\n')
    with pytest.raises(DataError, match="metrics.jsonl:2"):
        read_metrics(path, numbers=("loss",))
