"""One run, one folder: who is refused, who takes over, and what a crash leaves behind."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_v2pe.base import run_lock
from megatron_v2pe.base.run_lock import LOCK, FolderLock, lock_folder
from megatron_v2pe.errors import ConfigError, InUseError

HOLD = """
import sys, time
from pathlib import Path
from megatron_v2pe.base.run_lock import lock_folder
with lock_folder(Path(sys.argv[1]), "a test"):
    print("held", flush=True)
    time.sleep(600)
"""
HOLD_UNTIL_TOLD = HOLD.replace("time.sleep(600)", "sys.stdin.read()")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("megatron_v2pe"), "propagate", True)
    return caplog


def hold(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def edit(folder: Path, **changes) -> None:
    path = folder / LOCK
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def left_over(tmp_path: Path) -> Path:
    """A folder with the lock of a process that was killed."""
    end(hold(tmp_path))
    return tmp_path


def test_second_process_is_refused_and_after_a_kill_the_next_takes_over(tmp_path, log):
    process = hold(tmp_path)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on host .* since 20.*UTC.*wait for it"):
        FolderLock(tmp_path, "an evaluation").take()
    assert time.monotonic() - began < run_lock.SILENT_SECONDS / 2  # measured: 0.001 s
    process.send_signal(signal.SIGSTOP)  # frozen is not ended
    with pytest.raises(ConfigError, match="in use"):
        FolderLock(tmp_path, "an evaluation").take()
    process.kill()  # not waited for: a process that nobody has fetched has ended all the same
    while run_lock._start_of(process.pid):
        time.sleep(0.01)
    with lock_folder(tmp_path, "an evaluation"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert f"taken over from process {process.pid}" in log.text
    assert not list(tmp_path.iterdir())
    end(process)


def test_a_lock_that_outlives_its_owner_for_an_instant_is_waited_for(left_over, monkeypatch):
    """The main thread of a killed process may have ended while another of its threads still holds the lock."""
    answers = iter([False] * 5)
    take = run_lock._system_lock
    monkeypatch.setattr(run_lock, "_system_lock", lambda handle: next(answers, None) is not False and take(handle))
    with lock_folder(left_over, "an evaluation"):
        assert json.loads((left_over / LOCK).read_text())["pid"] == os.getpid()
    assert next(answers, None) is None


def test_a_claim_that_was_taken_for_left_is_given_up(left_over, monkeypatch):
    """Who takes over may stand still before it locks its claim, so that another removes that and claims too."""
    claim, take = left_over / run_lock._TAKING_OVER, run_lock._system_lock

    def late(handle):
        if claim.exists() and claim.stat().st_ino == os.fstat(handle).st_ino:
            monkeypatch.setattr(run_lock, "_system_lock", take)
            claim.rename(left_over / "removed")  # not unlinked: the number of its inode would be given again
            claim.write_text("another's")
        return take(handle)

    seen, remove = [], run_lock._remove_if_abandoned

    def looked(path, seconds):
        seen.append((claim.read_text(), (left_over / LOCK).exists()))
        remove(path, seconds)

    monkeypatch.setattr(run_lock, "_system_lock", late)
    monkeypatch.setattr(run_lock, "_remove_if_abandoned", looked)
    with lock_folder(left_over, "a run"):  # the other's claim is looked at as any, and is left as nobody locks it
        assert seen[0] == ("another's", True)


def test_a_held_lock_is_respected_whatever_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_ENDING_SECONDS", 0.3)
    process = hold(tmp_path)
    edit(tmp_path, started=1)  # as of a process that has ended
    with pytest.raises(ConfigError, match="in use"):
        FolderLock(tmp_path, "an evaluation").take()
    end(process)


def test_of_many_at_once_one_gets_it(left_over):
    pipe = subprocess.PIPE
    line = [sys.executable, "-c", HOLD_UNTIL_TOLD, str(left_over)]
    started = [subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    deadline = time.monotonic() + 300
    while sum(process.poll() is None for process in started) > 1:
        assert time.monotonic() < deadline, "more than one holds it"
        time.sleep(0.02)
    outputs = [process.communicate()[0] for process in started]  # closes the owner's input, which lets it end
    assert outputs.count("held\n") == 1, outputs
    assert not list(left_over.iterdir())


def test_other_number_same_process_number(left_over):
    edit(left_over, pid=os.getpid())  # the number was given again, to us
    with lock_folder(left_over, "a run"):
        pass


def test_other_host_is_watched(left_over, log):
    began = time.monotonic()  # before the last touch: from then on it has to be silent
    edit(left_over, host="elsewhere", machine="another")
    lock = FolderLock(left_over, "a run", silent_seconds=0.6)
    lock.take()
    assert 0.3 < time.monotonic() - began < 60  # measured: 0.8 s
    assert "on host elsewhere" in log.text and "has ended" in log.text
    lock.release()


def test_other_host_that_touches_is_refused(tmp_path):
    owner = FolderLock(tmp_path, "a run", beat_seconds=0.05)
    owner.take()
    edit(tmp_path, host="elsewhere", machine="another")
    code = """
import sys
from pathlib import Path
from megatron_v2pe.base.run_lock import FolderLock
FolderLock(Path(sys.argv[1]), "a run", beat_seconds=0.05).take()
"""
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert "is in use by process" in found.stderr and "on host elsewhere" in found.stderr
    owner.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[1]", b'{"pid": "x"}', b"[" * 100_000])
def test_damaged_content_counts_by_its_time(tmp_path, content, log):
    (tmp_path / LOCK).write_bytes(content)
    os.utime(tmp_path / LOCK, (1e9, 1e9))
    with lock_folder(tmp_path, "a run"):
        assert json.loads((tmp_path / LOCK).read_text())["what"] == "a run"
    assert "no name" in log.text


def test_without_system_locks_the_content_counts(tmp_path, monkeypatch):
    process = hold(tmp_path)
    monkeypatch.setattr(run_lock, "fcntl", None)
    with pytest.raises(ConfigError, match="in use"):
        FolderLock(tmp_path, "a run").take()
    end(process)
    with lock_folder(tmp_path, "a run"), pytest.raises(ConfigError, match="in use by another part of this process"):
        FolderLock(tmp_path, "a run").take()


def test_forked_child_does_not_hold_it(tmp_path):
    code = HOLD.replace("    time.sleep(600)", "    child = __import__('os').fork()\n    time.sleep(0 if child else 3)")
    code = code.replace("with lock_folder", "import os, threading\nwith lock_folder")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.wait()
    with lock_folder(tmp_path, "a run"):
        pass
    process.stdout.close()


def test_release_in_a_child_leaves_the_parents_lock(tmp_path):
    with lock_folder(tmp_path, "a run") as lock:
        if (child := os.fork()) == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / LOCK).exists()


def test_lock_of_another_is_not_removed(tmp_path):
    with lock_folder(tmp_path, "a run"):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def test_no_file_can_be_made(tmp_path, monkeypatch, log):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with lock_folder(tmp_path, "a run"):
        pass
    assert "without a lock" in log.text and "Read-only file system" in log.text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_special_file_in_its_place(tmp_path, make):
    make(tmp_path / LOCK)
    with pytest.raises(ConfigError, match="not a lock file"):
        FolderLock(tmp_path, "a run").take()


def test_what_it_says_is_printable(left_over):
    edit(left_over, host="\x1b[2Jevil", machine=run_lock._machine(), pid=1, started=run_lock._start_of(1))
    with pytest.raises(ConfigError) as caught:
        FolderLock(left_over, "a run").take()
    assert "\x1b" not in str(caught.value) and "\\x1b[2Jevil" in str(caught.value)


CLAIM = """
import os, sys, time
from pathlib import Path
from megatron_v2pe.base import run_lock
handle = os.open(Path(sys.argv[1]) / run_lock._TAKING_OVER, os.O_CREAT | os.O_EXCL | os.O_RDWR)
run_lock._system_lock(handle)
print("held", flush=True)
time.sleep(600)
"""


def test_one_that_was_killed_while_it_took_over_is_waited_for_no_longer(left_over, log):
    """While it lives the next is refused; it left its claim where it was killed, and the next takes over."""
    taking = subprocess.Popen([sys.executable, "-c", CLAIM, str(left_over)], stdout=subprocess.PIPE, text=True)
    assert taking.stdout is not None and taking.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match="another process is finding out"):
        FolderLock(left_over, "a test").take()
    end(taking)
    lock = FolderLock(left_over, "a test")
    lock.take()
    lock.release()
    assert not (left_over / run_lock._TAKING_OVER).exists()
