"""A build killed at any moment goes on and ends with the same bytes; a full disk loses nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from itertools import count
from multiprocessing import forkserver
from pathlib import Path

import pytest

from helpers.data_cases import assert_same_folders
from megatron_v2pe.data.indexed import finish, pieces, streams
from megatron_v2pe.data.indexed.streams import JOURNAL, Streams
from megatron_v2pe.errors import ConfigError, DataError


def build_in_pieces(case, out, workers, in_the_middle):
    """Build in pieces of one file or two lines; do something with the number of each write when half of it is done."""
    os.setsid()
    forkserver._forkserver._forkserver_pid = None  # the tests' own, which this process cannot wait for: readers get one
    append, numbers = Streams.append, count()

    def in_halves(self, name, content):
        append(self, name, content[: len(content) // 2])
        self._files[name].flush()
        in_the_middle(next(numbers))
        append(self, name, content[len(content) // 2 :])

    Streams.append = in_halves
    pieces.LINES_AT_ONCE, pieces.FILES_AT_ONCE = 2, 1
    case.build(out, images="embed", workers=workers)


def start(case, out, workers, in_the_middle):
    process = multiprocessing.get_context("fork").Process(
        target=build_in_pieces, args=(case, out, workers, in_the_middle)
    )
    process.start()
    return process


def killing(moment):
    """Kill a build and its readers in the middle of a write."""

    def killed(number):
        if number == moment:
            os.killpg(0, signal.SIGKILL)

    return killed


def wait(process):
    process.join(300)
    return process.exitcode


def test_killed_ten_times(case, tmp_path):
    assert wait(start(case, tmp_path / "undisturbed", 0, killing(None))) == 0
    moments = random.Random(0)
    for attempt in range(10):
        workers = 2 if attempt == 5 else 0
        assert wait(start(case, tmp_path / "killed", workers, killing(moments.randrange(12)))) == -signal.SIGKILL
        assert (tmp_path / "killed.building").exists() and not (tmp_path / "killed").exists()
    assert wait(start(case, tmp_path / "killed", 0, killing(None))) == 0
    assert_same_folders(tmp_path / "undisturbed", tmp_path / "killed")


def test_what_is_not_in_the_journal_is_cut_off(tmp_path):
    files = Streams(tmp_path, ["a", "b"])
    files.append("a", b"one")
    files.append("b", b"1")
    files.commit({"part": 1})
    files.append("a", b"half")
    files.close()
    with open(tmp_path / JOURNAL, "ab") as journal:
        journal.write(b'{"sizes": {"a": 7, "b"')
    files = Streams(tmp_path, ["a", "b"])
    assert files.notes == [{"part": 1}] and files.size("a") == 3
    files.append("a", b"two")
    files.commit({"part": 2})
    files.close()
    assert (tmp_path / "a").read_bytes() == b"onetwo" and (tmp_path / "b").read_bytes() == b"1"
    assert Streams(tmp_path, ["a", "b"]).notes == [{"part": 1}, {"part": 2}]
    (tmp_path / "a").write_bytes(b"on")
    assert Streams(tmp_path, ["a", "b"]).notes == []


@pytest.mark.parametrize("damage", ["a", "b", JOURNAL])
def test_what_is_damaged_is_done_again(tmp_path, caplog, damage):
    files = Streams(tmp_path, ["a", "b"], seed=7)
    for number in range(4):
        files.append("a", bytes([number]) * 100_000)
        files.append("b", b"%d" % number)
        files.commit({"part": number})
    files.close()
    whole = {name: (tmp_path / name).read_bytes() for name in ("a", "b", JOURNAL)}
    assert len(Streams(tmp_path, ["a", "b"], seed=7).notes) == 4 and not caplog.records
    content = bytearray(whole[damage])
    content[len(content) * 5 // 8] ^= 4
    (tmp_path / damage).write_bytes(content)
    files = Streams(tmp_path, ["a", "b"], seed=7)
    assert files.notes == [{"part": 0}, {"part": 1}] and "2 pieces of work that were noted" in caplog.text
    for number in (2, 3):
        files.append("a", bytes([number]) * 100_000)
        files.append("b", b"%d" % number)
        files.commit({"part": number})
    digests = {name: files.sums(name).blocks().tolist() for name in ("a", "b")}
    files.close()
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    files = Streams(tmp_path, ["a", "b"], seed=7)
    assert {name: files.sums(name).blocks().tolist() for name in ("a", "b")} == digests
    assert Streams(tmp_path, ["a", "b"], seed=8).notes == [], "the journal of another build"


def test_a_full_disk(case, tmp_path, monkeypatch):
    reference = case.build(tmp_path / "reference").folder
    monkeypatch.setattr("megatron_v2pe.data.indexed.pieces.LINES_AT_ONCE", 4)
    commit, commits = Streams.commit, []

    def full(self, note):
        commits.append(note)
        if len(commits) == 4:
            with streams.room(self._folder / JOURNAL):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(self, note)

    monkeypatch.setattr(streams.Streams, "commit", full)
    with pytest.raises(
        DataError, match=r"journal.jsonl: No space left on device, \d+ bytes are free; make room and run"
    ):
        case.build(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    case.build(tmp_path / "set")
    assert_same_folders(reference, tmp_path / "set")


@pytest.mark.parametrize("moment", range(8))
def test_ended_while_the_last_files_are_written(case, tmp_path, monkeypatch, moment):
    """A build that ends at any call of its last steps goes on, encodes nothing again, and ends with the same bytes."""
    whole = case.build(tmp_path / "whole").folder
    calls = []

    def ending(function):
        def call(*arguments, **options):
            calls.append(function)
            if len(calls) == moment + 1:
                raise InterruptedError(moment)
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", ending(os.replace))
        patch.setattr(Path, "unlink", ending(Path.unlink))
        patch.setattr(finish, "write_report", ending(finish.write_report))
        with pytest.raises(InterruptedError):
            case.build(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    if moment > 1:  # its plan was in place and its samples encoded
        monkeypatch.setattr("megatron_v2pe.data.indexed.work.Worker.encode", None)
    assert_same_folders(case.build(tmp_path / "set").folder, whole)


def test_two_builds_at_once_are_refused(case, tmp_path):
    at_work = multiprocessing.get_context("fork").Event()

    def stay(number):
        at_work.set()
        time.sleep(600)

    first = start(case, tmp_path / "set", 0, stay)
    try:
        assert at_work.wait(120)
        with pytest.raises(ConfigError, match=rf"set.building is in use by process {first.pid} on host"):
            case.build(tmp_path / "set", images="embed")
    finally:
        first.kill()
        first.join()


def test_annotations_that_change_meanwhile(case, tmp_path, monkeypatch):
    commit = Streams.commit

    def changing(self, note):
        commit(self, note)
        annotation = tmp_path / "data" / "all.jsonl"
        annotation.write_text(annotation.read_text() + "\n")

    monkeypatch.setattr(Streams, "commit", changing)
    with pytest.raises(DataError, match=r"all.jsonl changed while the data set was built"):
        case.build(tmp_path / "set")
