"""Notes of what is asked: a run that was ended is counted once for its questions, however often notes are read."""

from __future__ import annotations

import pytest

from megatron_v2pe.errors import CommunicationError, ConfigError
from megatron_v2pe.evaluate.crash_notes import AskingNote, ended_runs, is_clean_exit, remove_notes


def test_each_end_counts_once(tmp_path):
    assert ended_runs(tmp_path) == {}
    AskingNote(tmp_path, 0, {}).put(["a", "b"])  # a run of two writers ends
    AskingNote(tmp_path, 1, {}).put(["c"])
    assert ended_runs(tmp_path) == {"a": 1, "b": 1, "c": 1}
    assert ended_runs(tmp_path) == {"a": 1, "b": 1, "c": 1}
    note = AskingNote(tmp_path, 0, ended_runs(tmp_path))  # the next has one writer, and ends over another question
    note.put(["d"])
    assert ended_runs(tmp_path) == {"a": 1, "b": 1, "c": 1, "d": 1}
    AskingNote(tmp_path, 0, ended_runs(tmp_path)).put(["c"])
    assert ended_runs(tmp_path)["c"] == 2


def test_what_stops_with_a_message_counts_nothing(tmp_path):
    note = AskingNote(tmp_path, 0, {"a": 1})
    note.put(["a"])
    note.put([])
    assert ended_runs(tmp_path) == {"a": 1}


def test_torn_notes_and_the_end_of_a_run(tmp_path):
    AskingNote(tmp_path, 0, {}).put(["a"])
    (tmp_path / "asking-00001.json").write_text("")
    (tmp_path / "asking-00002.new").write_text("{")
    (tmp_path / "answers-00000.jsonl").write_text("")
    assert ended_runs(tmp_path) == {"a": 1}
    remove_notes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["answers-00000.jsonl"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), True),
        (SystemExit(1), True),
        (OSError("no space left on device"), True),
        (ConfigError("stride"), True),
        (CommunicationError("rank 1 no longer answers"), False),
        (RuntimeError("connection closed by peer"), False),
        (MemoryError(), False),
        (AssertionError(), False),
    ],
)
def test_what_speaks_against_a_question(error, expected):
    assert is_clean_exit(error) == expected
