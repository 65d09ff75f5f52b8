"""When one process of a run ends, all end: a thread of every process sees what its main thread, which waits, cannot.

Each process says every second, in the run's store, that it lives and how far it is. Rank 0 looks at all of them, the
others at rank 0. A process that has said nothing for the timeout, or a run without progress for as long, is ended.
What ended a run is written once, as JSON, where all look: they end with the same status, and one of them says why. When
nothing moved, every process first shows what its threads were doing.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from megatron_v2pe.base import exit_status, last_words
from megatron_v2pe.base.orphans import lost_reader
from megatron_v2pe.errors import CommunicationError, V2PEError

END = "end"
"""Key of what ended the run."""

_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 3.0
"""Seconds for a main thread to say itself what went wrong, once another has."""

_LOST_SECONDS = 5.0
"""Seconds from the loss of the store to the end of the process."""

_TELL_SECONDS = 60.0
"""Seconds for one thread of a process to say and show why a run ends, where another has met the end as well."""

_STALE_SECONDS = 8.0
"""Seconds: a process that has shown no sign of life for so long is named when nothing moves."""

_COMMUNICATION = ("connection closed", "connection reset", "timed out waiting", "broken pipe", "nccl", "gloo")
"""Words in PyTorch's messages when another process does not answer."""


class WatchedProcess(Protocol):
    """What the watchdog has to know of a process; `launch.World` has it."""

    @property
    def rank(self) -> int:
        """Number of the process in the run."""
        ...

    @property
    def local_rank(self) -> int:
        """Number of the process on its machine."""
        ...

    @property
    def world_size(self) -> int:
        """How many processes the run has."""
        ...


class _Moves:
    """Counts the calls of `progress`; one object for the process, as callers do not know the watchdog."""

    count = 0
    phase = "starting"


def progress(phase: str) -> None:
    """Say that this process has come further; costs nothing.

    Args:
        phase: what it does now, in a word or two.
    """
    _Moves.count += 1
    _Moves.phase = phase


def start(world: WatchedProcess, connect: Callable[[], dist.Store], limit: float, dumps: Path | None) -> Watchdog:
    """Watch over this process from now on.

    Args:
        world: its place.
        connect: opens a connection of its own to the run's store.
        limit: seconds in which something must have moved.
        dumps: folder for what threads were doing.
    """
    return Watchdog(world, connect, limit, dumps)


class Watchdog:
    """Watches over one process of a run of several."""

    def __init__(
        self, world: WatchedProcess, connect: Callable[[], dist.Store], limit: float, dumps: Path | None
    ) -> None:
        """Start the thread; the arguments are those of `start`."""
        self._world, self._limit, self._dumps = world, limit, dumps
        self._connect, self._store = connect, connect()
        self._lock = threading.Lock()
        """Lock of the store, whose connection serves one thread at a time."""
        self._host = socket.gethostname()
        self._stopped = threading.Event()
        self._heard = time.monotonic()
        self._lives = 0
        self._seen: dict[int, tuple[str, float]] = {}
        """Rank -> its last sign of life, and since when that has not changed."""
        self._moved: tuple[int, float] = (-1, time.monotonic())
        self._dumping = threading.Lock()
        self._dumped = False
        self._met: BaseException | None = None
        """The error that the main thread has met, if it has left its work."""
        self.left = False
        """Whether the run has ended for this process in good order."""
        me = {"host": self._host, "process": os.getpid(), "started": _started(os.getpid())}
        self._store.set(f"process {world.rank}", json.dumps(me))
        self._live()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Leave in good order; the process that holds the store waits until the others have left too."""
        self._stopped.set()
        self.left = True
        with suppress(RuntimeError), self._lock:
            left = self._store.add("left", 1)
            until = time.monotonic() + seconds
            while self._world.rank == 0 and left < self._world.world_size and time.monotonic() < until:
                if self._store.check([END]):
                    return
                time.sleep(0.02)
                left = self._store.add("left", 0)

    def report(self, error: BaseException) -> int:
        """Report to the others and the user that this process ends for an error, if none has yet; return the status."""
        self._met = error
        error = plain(error)
        another_ended = isinstance(error, CommunicationError)
        silent: list[int] = []
        if another_ended:  # which has written why, or whose launcher has
            if (ended := self._wait_for_end(_LOST_SECONDS)) is not None:
                return self._follow(ended)
            silent = self._silent_now()
        status = exit_status.of(error)
        text = str(error) if status != exit_status.INTERNAL else f"{type(error).__name__}: {error}"
        if silent:
            with suppress(RuntimeError):  # the store may go at any moment
                text += f"; no sign of life from {self._names(silent)}"
        hang = another_ended and "timed out" in text.lower()
        mine = self._record(text or type(error).__name__, status, hang=hang, silent=silent)
        with self._lock:
            ended = self._write_end(mine)
            self._stopped.set()
        if another_ended and ended != mine:
            return self._follow(ended)
        if ended == mine or ended["text"] != text:
            if status == exit_status.INTERNAL:
                traceback.print_exception(error)
            say(f"error: {text} [{self._me()}]")
        _leave_words(ended)
        if hang:
            self._dump()
        self._kill_silent(ended)
        return int(ended["status"])

    def _follow(self, ended: dict[str, Any]) -> int:
        """End this process as another has said, or as the watching thread of this one has."""
        _leave_words(ended)
        if ended["rank"] == self._world.rank and ended["host"] == self._host:
            self._thread.join(_TELL_SECONDS)  # it tells why, and ends the process
        self._stopped.set()
        if ended.get("hang"):
            self._dump()
        self._kill_silent(ended)
        return int(ended["status"])

    def _me(self) -> str:
        return f"rank {self._world.rank} on {self._host}"

    def _record(self, text: str, status: int, **more: Any) -> dict[str, Any]:
        return {"rank": self._world.rank, "host": self._host, "text": text, "status": status, **more}

    def _watch(self) -> None:
        while not self._stopped.wait(min(_LOOK_SECONDS, self._limit / 10)):
            try:
                with self._lock:
                    if self._stopped.is_set():
                        return
                    self._live()
                    ended = self._end()
                    judged = None if ended else self._judge()
                self._heard = time.monotonic()
            except RuntimeError as error:  # all of PyTorch's; the store does not answer, or is gone
                self._without_store(error)
                continue
            if judged is not None:
                with self._lock:
                    if self._stopped.is_set():  # the main thread has written the end meanwhile, and is about to say it
                        return
                    ended = self._write_end(judged)
                if ended == judged:
                    say(f"error: {judged['text']} [seen by {self._me()}]")
            if ended is not None:
                self._leave(ended)

    def _live(self) -> None:
        self._lives += 1
        self._store.set(f"life {self._world.rank}", f"{self._lives} {_Moves.count} {_Moves.phase}")

    def _end(self) -> dict[str, Any] | None:
        return json.loads(self._store.get(END)) if self._store.check([END]) else None

    def _write_end(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write what ends the run, unless it is written; return what is written."""
        try:
            return json.loads(self._store.compare_set(END, "", json.dumps(record)))
        except (RuntimeError, ValueError):  # whoever held the store is gone
            return record

    def _wait_for_end(self, seconds: float) -> dict[str, Any] | None:
        until = time.monotonic() + seconds
        with suppress(RuntimeError):
            while time.monotonic() < until:
                with self._lock:
                    ended = self._end()
                if ended is not None:
                    return ended
                time.sleep(0.05)
        return None

    def _judge(self) -> dict[str, Any] | None:
        """Return what ends the run: a process that has not lived, or a run that has not moved, for the limit."""
        now, moved = time.monotonic(), 0
        for rank in range(self._world.world_size) if self._world.rank == 0 else (0,):
            key = f"life {rank}"
            said = self._store.get(key).decode() if self._store.check([key]) else "0 0 starting"
            if self._seen.get(rank, ("", 0.0))[0] != said:
                self._seen[rank] = (said, now)
            moved += int(said.split(" ", 2)[1])
        if moved != self._moved[0]:
            self._moved = (moved, now)
        silent = [rank for rank, (_, since) in self._seen.items() if now - since > self._limit]
        still = self._world.rank == 0 and now - self._moved[1] > self._limit
        if not silent and not still:
            return None
        silent = [rank for rank, (_, since) in self._seen.items() if now - since > min(_STALE_SECONDS, self._limit / 2)]
        if silent:
            text = f"no sign of life from {self._names(silent)} for {self._limit:.0f} s: frozen, or its machine is gone"
        else:
            doing = "; ".join(
                f"rank {rank}: {said.split(' ', 2)[2]}" for rank, (said, _) in list(self._seen.items())[:8]
            )
            text = f"nothing moved for {self._limit:.0f} s ({doing})"
        return self._record(text, exit_status.TRY_AGAIN, hang=True, silent=silent)

    def _silent_now(self) -> list[int]:
        """Wait a moment; return the ranks that give no sign of life in it."""
        with suppress(RuntimeError):
            before = self._lives_of_all()
            time.sleep(_GRACE_SECONDS)
            pairs = enumerate(zip(before, self._lives_of_all(), strict=True))
            return [rank for rank, (old, new) in pairs if old == new and rank != self._world.rank]
        return []

    def _lives_of_all(self) -> list[bytes]:
        keys = [f"life {rank}" for rank in range(self._world.world_size)]
        with self._lock:
            return [self._store.get(key) if self._store.check([key]) else b"" for key in keys]

    def _names(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {rank} on {self._process(rank).get('host', 'an unknown host')}" for rank in ranks)

    def _process(self, rank: int) -> dict[str, Any]:
        key = f"process {rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else {}

    def _without_store(self, error: Exception) -> None:
        silent = time.monotonic() - self._heard
        closed = not any(word in str(error).lower() for word in ("timeout", "timed out"))
        if self._stopped.is_set() or silent < (_LOST_SECONDS if closed else self._limit):
            if not closed:
                with suppress(RuntimeError, V2PEError):  # an answer that comes late would be taken for the next one
                    self._store = self._connect()
            return
        if not self._stopped.wait(_GRACE_SECONDS):
            where = "rank 0, or the launcher of the first machine,"
            text = f"{where} is gone" if closed else f"{where} has not answered for {silent:.0f} s"
            say(f"error: {text} [seen by {self._me()}]")
            if not closed:
                self._dump()
            _exit(exit_status.TRY_AGAIN)

    def _leave(self, ended: dict[str, Any]) -> None:
        """End this process; the main thread may do so itself, if it has noticed as well."""
        _leave_words(ended)
        if ended.get("hang"):
            self._dump()
        elif self._stopped.wait(_GRACE_SECONDS):
            return
        self._kill_silent(ended)
        if ended["host"] != self._host and self._world.local_rank == 0:
            say(f"error: {ended['text']} [told by rank {ended['rank']} on {ended['host']}]")
        _exit(int(ended["status"]))

    def _kill_silent(self, ended: dict[str, Any]) -> None:
        """Kill processes of this machine that cannot end themselves."""
        for rank in ended.get("silent", ()):
            with suppress(RuntimeError, OSError, KeyError):
                process = self._process(rank)
                number = process["process"]
                if process["host"] == self._host and number != os.getpid() and _started(number) == process["started"]:
                    os.kill(number, signal.SIGKILL)

    def _dump(self) -> None:
        """Show what every thread of this process is doing, on standard error and in a file; once.

        A second thread waits until the first has done so: what follows may end the process.
        """
        if not self._dumping.acquire(timeout=_TELL_SECONDS):
            return
        try:
            if not self._dumped:
                self._dumped = True
                self._show_threads()
        finally:
            self._dumping.release()

    def _show_threads(self) -> None:
        say(f"what {self._me()} was doing:")
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        if self._dumps is not None:
            with suppress(OSError):
                self._dumps.mkdir(parents=True, exist_ok=True)
                with (self._dumps / f"hang-rank{self._world.rank}.txt").open("w", encoding="utf-8") as file:
                    file.write(f"{self._me()}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {_Moves.phase}\n")
                    for met in _chain(self._met or _handled_by_main_thread()):
                        where = "".join(traceback.format_tb(met.__traceback__))
                        file.write(f"the main thread left this with {type(met).__name__}:\n{where}\n")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)


def _handled_by_main_thread() -> BaseException | None:
    """Return the error on whose account the main thread leaves its work right now, if there is one.

    Between the error and `report` lie the ends of `with` and `finally` blocks, which may take seconds. The frames in
    which the main thread waited are gone from its stack by then; the error still has them.
    """
    handled: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    return handled[1] if isinstance(handled, tuple) else handled  # a tuple before Python 3.12


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error and those that were being handled when it was raised, the first of them first.

    What a `finally` block calls handles errors of its own, which hide the one that the block is on its way with.
    """
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.insert(0, error)
        error = error.__context__
    return errors


def plain(error: BaseException, alone: bool = False) -> BaseException:
    """Return an error of PyTorch's as one of ours, where another process is its cause.

    Args:
        error: any.
        alone: there are no other ranks.
    """
    for met in (error, error.__cause__):  # noticed by a signal handler, wherever the main thread was
        if isinstance(met, RuntimeError) and "DataLoader worker" in str(met):
            return lost_reader(met)
    if isinstance(error, RuntimeError):
        text = str(error)
        if not alone and any(word in text.lower() for word in _COMMUNICATION):
            line = re.sub(r"^\[\S*\] *", "", next(iter(text.splitlines()), text)).partition(". This is")[0]
            ours = CommunicationError(f"another process of the run no longer answers ({line})")
            ours.__cause__ = error
            return ours
    return error


def _leave_words(ended: dict[str, Any]) -> None:
    """Leave another process's message for torchrun, which may look at any of the processes."""
    last_words.leave(f"error: {ended['text']} [rank {ended['rank']} on {ended['host']}]")


def _started(process: int) -> str:
    """Return when a process began, so that its number is not taken for that of a later one."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def say(text: str) -> None:
    """Write a line to standard error, if there is one; a bar that shows progress may stand in the line before.

    An error is also left for torchrun.
    """
    if text.startswith("error: "):
        last_words.leave(text)
    with suppress(OSError, ValueError):
        print(f"\n{text}", file=sys.stderr, flush=True)


def _exit(status: int) -> None:
    for stream in _streams():
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _streams() -> Iterator[Any]:
    yield from (stream for stream in (sys.stdout, sys.stderr) if stream is not None)
