"""A build killed at any moment goes on and ends with the same bytes; a full disk loses nothing."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from megatron_v2pe.data.indexed import streams
from megatron_v2pe.data.indexed.streams import JOURNAL, Streams
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.testing.data_cases import assert_same_folders

BUILD = """
import sys, time
import megatron_v2pe.data.indexed.build as module
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.documents import DocumentEncoder, ModelFacts
from megatron_v2pe.data.indexed.streams import Streams
from megatron_v2pe.data.sources import read_data_list
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.v2pe.stride import StridePolicy

meta, model, out, workers, slow = sys.argv[1:]
module.LINES_AT_ONCE, module.FILES_AT_ONCE = 2, 1
append = Streams.append
def slowly(self, name, content):  # so that a kill finds the build at work
    append(self, name, content[: len(content) // 2])
    self._files[name].flush()
    time.sleep(float(slow))
    append(self, name, content[len(content) // 2 :])
Streams.append = slowly
if __name__ == "__main__":
    config = DataConfig(meta_path=meta, max_seq_length=400, max_packed_tokens=700, num_images_expected=20,
                        max_dynamic_patch=6, min_num_frame=2, max_num_frame=4)
    tokenizer = Tokenizer.from_folder(model)
    encoder = DocumentEncoder(config, tokenizer, ModelFacts(28, 4), StridePolicy("default"), 5)
    print("ready", flush=True)
    module.build(read_data_list(meta), encoder, module.BuildOptions(out, int(workers), "embed"), {})
"""


def start(case, script, out, workers, slow):
    arguments = [case.meta, case.encoder.tokenizer.model_file, out, workers, slow]
    process = subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_killed_ten_times(case, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    assert start(case, script, tmp_path / "undisturbed", 0, 0).wait(120) == 0
    moments, kills = random.Random(0), 0
    for attempt in range(10):
        workers = 2 if attempt in (3, 6, 9) else 0
        process = start(case, script, tmp_path / "killed", workers, 0.02)
        time.sleep(moments.uniform(2, 4) if workers else moments.uniform(0.02, 0.4))
        kills += process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / "killed.building").exists() != (tmp_path / "killed").exists()
    assert kills >= 7, "most of the kills met the build at work"
    assert start(case, script, tmp_path / "killed", 0, 0).wait(120) == 0
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
    with pytest.raises(DataError, match=r"a: 2 bytes, the journal says 6"):
        Streams(tmp_path, ["a", "b"])


def test_a_full_disk(case, tmp_path, monkeypatch):
    reference = case.build(tmp_path / "reference").folder
    monkeypatch.setattr("megatron_v2pe.data.indexed.build.LINES_AT_ONCE", 4)
    commit, commits = Streams.commit, []

    def full(self, note):
        commits.append(note)
        if len(commits) == 4:
            with self._room(JOURNAL):
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


def test_two_builds_at_once_are_refused(case, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    first = start(case, script, tmp_path / "set", 0, 0.02)
    while not (tmp_path / "set.building" / JOURNAL).exists():
        time.sleep(0.01)
    try:
        with pytest.raises(ConfigError, match="another process is building there"):
            case.build(tmp_path / "set", images="embed")
    finally:
        first.kill()
        first.wait()


def test_annotations_that_change_meanwhile(case, tmp_path, monkeypatch):
    commit = Streams.commit

    def changing(self, note):
        commit(self, note)
        annotation = tmp_path / "data" / "all.jsonl"
        annotation.write_text(annotation.read_text() + "\n")

    monkeypatch.setattr(Streams, "commit", changing)
    with pytest.raises(DataError, match=r"all.jsonl changed while the data set was built"):
        case.build(tmp_path / "set")
