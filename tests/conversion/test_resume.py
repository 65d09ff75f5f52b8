"""A conversion that is killed, at any line of its journal, goes on with the same command and ends in the same bytes.

The kinds of fault: half a shard is taken for whole, a checksum that was lost with the process is not made again, a
partial of another source is gone on with, something appears under the final name before it is whole.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading

import pytest
import torch

from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.checkpoint.hf.api import hf_to_hf, hf_to_mcore, mcore_to_hf, mcore_to_mcore
from megatron_v2pe.checkpoint.hf.journal import Journal
from megatron_v2pe.errors import InUseError

WAYS = {
    "hf-to-mcore": ("odd", lambda source, target: hf_to_mcore(source, target, memory_limit="64MiB")),
    "hf-to-mcore, cut": ("odd", lambda source, target: hf_to_mcore(source, target, max_shard_size="50KB")),
    "mcore-to-hf": ("odd mcore", lambda source, target: mcore_to_hf(source, target, dtype="fp32")),
    "hf-to-hf": ("odd", lambda source, target: hf_to_hf(source, target, max_shard_size="40KB")),
    "mcore-to-mcore": ("odd mcore", lambda source, target: mcore_to_mcore(source, target, dtype="fp16")),
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(convert, source, target, lines):
    """Whether a process of its own that converts was killed, with that many lines in its journal, at the next one.

    Threads add lines at the same time, so a line counts when it is written, not when it is about to be.
    """
    process = os.fork()
    if not process:
        add, written, one_at_a_time = Journal.add, [0], threading.Lock()

        def counted(journal, **line):
            with one_at_a_time:
                if written[0] == lines:
                    os.kill(os.getpid(), signal.SIGKILL)
                add(journal, **line)
                written[0] += 1

        Journal.add = counted
        torch.set_num_threads(1)  # the threads of the process before are not there, and PyTorch would wait for them
        try:
            convert(source, target)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def place(sources, converted):
    return {"odd": sources["odd"], "odd mcore": converted["odd"], "single": sources["single"]}


@pytest.mark.parametrize("way", WAYS)
def test_killed_again_and_again_it_ends_in_the_same_bytes(place, tmp_path, way):
    named, convert = WAYS[way]
    convert(place[named], tmp_path / "whole")
    expected, kills = contents(tmp_path / "whole"), 0
    target, hidden = tmp_path / "out", tmp_path / ".out.writing"
    for lines in (0, 1, 7, 40):
        if not killed(convert, place[named], target, lines):
            break
        kills += 1
        assert not target.exists() and hidden.is_dir()
        left = [line for line in (hidden / "journal.jsonl").read_text().splitlines() if line]
        assert len(left) >= 1 + lines  # what the process before had written stays, and it wrote so many more
    assert kills >= 3
    convert(place[named], target)
    assert contents(target) == expected
    assert not hidden.exists()


def test_work_that_was_done_is_not_done_again(place, tmp_path, monkeypatch):
    """Planted break: without the journal every stretch is written again."""
    from megatron_v2pe.checkpoint.torch_dist import TorchDistWriter

    written = []
    add = TorchDistWriter.add_rows
    monkeypatch.setattr(TorchDistWriter, "add_rows", lambda *given: written.append(given[1]) or add(*given))
    hf_to_mcore(place["odd"], tmp_path / "whole")
    all_of_them = len(written)
    for kept in (True, False):
        target = tmp_path / f"out {kept}"
        assert killed(hf_to_mcore, place["odd"], target, 60)
        if not kept:
            (tmp_path / f".out {kept}.writing" / "journal.jsonl").unlink()
        written.clear()
        hf_to_mcore(place["odd"], target)
        assert contents(target) == contents(tmp_path / "whole")
        assert (len(written) < all_of_them - 20) == kept


@pytest.mark.parametrize("way", ["hf-to-mcore", "hf-to-hf"])
def test_what_was_written_and_has_changed_is_written_again(place, tmp_path, way):
    named, convert = WAYS[way]
    convert(place[named], tmp_path / "whole")
    target, folder = tmp_path / "out", tmp_path / ".out.writing" / "folder"
    assert killed(convert, place[named], target, 40)
    file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content[:-5])  # a flipped bit, and an end that never reached the disk
    convert(place[named], target)
    assert contents(target) == contents(tmp_path / "whole")


def test_a_partial_of_another_source_or_of_other_options_is_discarded(place, tmp_path, caplog):
    hf_to_mcore(place["odd"], tmp_path / "whole")
    logging.getLogger("megatron_v2pe").addHandler(caplog.handler)
    for other in (
        lambda target: killed(hf_to_mcore, place["single"], target, 30),
        lambda target: killed(lambda *places: hf_to_mcore(*places, dtype="fp32"), place["odd"], target, 30),
    ):
        assert other(tmp_path / "out")
        caplog.clear()
        hf_to_mcore(place["odd"], tmp_path / "out")
        assert "holds an unfinished conversion of" in caplog.text and "it is discarded" in caplog.text
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")
    logging.getLogger("megatron_v2pe").removeHandler(caplog.handler)


def test_a_source_that_has_changed_since_is_converted_from_the_beginning(place, tmp_path):
    source = tmp_path / "hf"
    shutil.copytree(place["odd"], source)
    assert killed(hf_to_mcore, source, tmp_path / "out", 30)
    shard = source / "model-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    hf_to_mcore(source, tmp_path / "out")
    hf_to_mcore(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_target_that_another_process_writes_to_is_refused(place, tmp_path):
    hidden = tmp_path / ".out.writing"
    hidden.mkdir()
    (hidden / "folder").mkdir()
    lock = FolderLock(hidden, "a conversion to out")
    lock.take()
    try:
        with pytest.raises(InUseError, match="is in use"):
            hf_to_mcore(place["odd"], tmp_path / "out")
    finally:
        lock.release()
    assert (hidden / "folder").is_dir() and not (tmp_path / "out").exists()
    hf_to_mcore(place["odd"], tmp_path / "out")


def test_after_an_interrupt_the_work_stays(place, tmp_path, monkeypatch):
    """Ctrl-C ends a process in order; what it has written is for the next one."""
    add, seen = Journal.add, [0]

    def interrupted(journal, **line):
        seen[0] += 1
        if seen[0] == 30:
            raise KeyboardInterrupt
        add(journal, **line)

    monkeypatch.setattr(Journal, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mcore_to_hf(place["odd mcore"], tmp_path / "out")
    assert (tmp_path / ".out.writing" / "journal.jsonl").is_file()
    mcore_to_hf(place["odd mcore"], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(place["odd"])
