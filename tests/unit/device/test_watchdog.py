"""What the watchdog writes of a main thread that has met an error and is still on its way to report it."""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch.distributed as dist

from megatron_v2pe.device import watchdog
from megatron_v2pe.errors import CommunicationError, ConfigError, LostProcessError


@dataclass
class Place:
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def wait_for_neighbour():
    raise CommunicationError("a neighbour no longer answers")


def dump_at_once(watching):
    """Another rank is seen to end at this very moment, by the watching thread."""
    other = threading.Thread(target=watching._dump)
    other.start()
    other.join()


def dump_at_an_error_of_its_own(watching):
    """Closing a file or writing a picture may try something that fails, and go on."""
    try:
        io.BytesIO().fileno()
    except OSError:
        dump_at_once(watching)


def dump_at_an_error_that_hides_its_origin(watching):
    with suppress(ValueError):
        try:
            io.BytesIO().fileno()
        except OSError:
            try:
                raise ValueError("no such file") from None
            finally:
                dump_at_once(watching)


LEAVING = [dump_at_once, dump_at_an_error_of_its_own, dump_at_an_error_that_hides_its_origin]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
def test_the_dump_names_where_the_main_thread_waited_while_it_leaves(tmp_path, leave):
    """The frames that waited are off the stack in a `finally` block, and another rank may be seen to end then."""
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=tmp_path)
    with pytest.raises(CommunicationError):
        try:
            wait_for_neighbour()
        finally:
            leave(watching)
    watching.finish(0)
    assert "in wait_for_neighbour" in (tmp_path / "hang-rank0.txt").read_text()


def test_the_dump_ends_where_errors_name_each_other(tmp_path):
    """Two errors may each be the context of the other, as Python does not forbid it."""
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=tmp_path)
    first, second = CommunicationError("a neighbour no longer answers"), OSError("closed")
    first.__context__, second.__context__ = second, first
    watching._met = first
    watching._dump()
    watching.finish(0)
    text = (tmp_path / "hang-rank0.txt").read_text()
    assert text.count("with CommunicationError") == text.count("with OSError") == 1


class Waits:
    """In place of a folder: whoever makes it stands still until the test lets it go on."""

    def __init__(self, folder):
        self.folder, self.reached, self.go = folder, threading.Event(), threading.Event()

    def mkdir(self, **_):
        self.reached.set()
        assert self.go.wait(600)

    def __truediv__(self, name):
        return self.folder / name


def test_a_thread_that_would_end_the_process_waits_for_a_dump_that_another_writes(tmp_path):
    """The thread that watches and the main one may meet the end of another rank at one moment."""
    folder = Waits(tmp_path)
    watching = watchdog.start(Place(), dist.HashStore, limit=1000, dumps=folder)
    first, second = (threading.Thread(target=watching._dump) for _ in range(2))
    first.start()
    assert folder.reached.wait(600)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "it would end the process now"
    folder.go.set()
    first.join()
    second.join()
    watching.finish(0)
    assert "Current thread" in (tmp_path / "hang-rank0.txt").read_text()


class SlowToTell:
    """A lock, after whose release the watching thread stands still once it has judged that a run hangs."""

    def __init__(self, watching):
        self.lock, self.watching = threading.Lock(), watching
        self.looked, self.judged, self.go = False, threading.Event(), threading.Event()

    def __enter__(self):
        self.lock.acquire()
        self.looked = self.looked or threading.current_thread() is self.watching._thread

    def __exit__(self, *_):
        self.lock.release()
        if threading.current_thread() is self.watching._thread and not self.judged.is_set():
            self.judged.set()
            assert self.go.wait(600)


def test_an_end_that_the_main_thread_is_about_to_say_is_left_to_it(tmp_path, monkeypatch, capsys):
    """Both threads see that a neighbour does not answer; whoever writes it first says it before the process ends."""
    ended = []
    for name in ("_LOOK_SECONDS", "_LOST_SECONDS", "_GRACE_SECONDS"):
        monkeypatch.setattr(watchdog, name, 0.02)
    monkeypatch.setattr(watchdog, "_exit", ended.append)
    hangs = {"rank": 0, "host": "here", "text": "nothing moved", "status": 75, "hang": True}
    monkeypatch.setattr(
        watchdog.Watchdog, "_judge", lambda self: hangs if getattr(self._lock, "looked", False) else None
    )
    store = dist.HashStore()
    watching = watchdog.start(Place(), lambda: store, limit=1000, dumps=tmp_path)
    watching._lock = slow = SlowToTell(watching)
    assert slow.judged.wait(600)
    say = watchdog.say

    def said(text):  # the other thread goes on before anything is said
        slow.go.set()
        if threading.current_thread() is not watching._thread:
            watching._thread.join()
        say(text)

    monkeypatch.setattr(watchdog, "say", said)
    assert watching.report(CommunicationError("a neighbour no longer answers (Timed out waiting)")) == 75
    assert ended == [], "the process has ended before it has said why"
    assert capsys.readouterr().err.count("error: ") == 1


class Away:
    """A store that does not answer for a while, and cannot be reached anew in that time."""

    def __init__(self):
        self.store, self.is_away, self.tried = dist.HashStore(), False, threading.Event()

    def connect(self):
        if self.is_away:
            self.tried.set()
            raise ConfigError("what listens there is another program")
        return self

    def __getattr__(self, name):
        if self.is_away:
            raise RuntimeError("Socket Timeout")
        return getattr(self.store, name)


def test_a_store_that_stands_still_is_not_given_up_before_its_time(monkeypatch):
    """The machine that holds it is busy: the thread that watches goes on when it answers again."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.02)
    away = Away()
    watching = watchdog.start(Place(), away.connect, limit=1000, dumps=None)
    away.is_away = True
    for _ in range(2):
        while not away.tried.wait(0.05):
            assert watching._thread.is_alive()
        away.tried.clear()
    away.is_away = False
    watching.finish(0)


READER = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def in_a_ring():
    """The handler of the signal raises where the main thread is: here where it waits for a neighbour."""
    try:
        raise READER
    except RuntimeError as error:
        raise CommunicationError("ring attention: a neighbour no longer answers") from error


def test_a_lost_reader_is_named_wherever_the_main_thread_has_met_it():
    with pytest.raises(CommunicationError) as found:
        in_a_ring()
    for error in (READER, found.value):
        told = watchdog.plain(error)
        assert isinstance(told, LostProcessError) and "a reader process has ended" in str(told)
    other = CommunicationError("a neighbour no longer answers")
    assert watchdog.plain(other) is other
