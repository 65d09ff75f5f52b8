"""One run, one folder: a lock that says who holds it, and that a crash of its owner does not leave behind.

The lock is a file `.lock` in the folder. It says which process of which machine works there, and since when. That is
worth nothing after a crash, so two signs of life stand beside it. The system's own lock on the file ends with the
process that holds it, on every file system that has locks. Where there are none, or none between machines, as on many
network file systems, the owner touches the file every ten seconds. A process of this machine that has ended is known by
its number and its start time.

A process that finds the file takes it over if its owner has ended, with a line in the log, and is refused if the owner
lives. Where only the touching can show which, it watches until the next touch, or for two minutes without one. Clocks
of two machines are never compared. On a file system where no file can be made the run goes on without a lock, with a
warning.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.errors import ConfigError, InUseError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.foreign.text import parse_json

try:
    import fcntl
except ImportError:  # a system without such locks: the file and its touching remain
    fcntl = None

LOCK = ".lock"
BEAT_SECONDS = 10.0
"""How often the owner touches the file."""
SILENT_SECONDS = 120.0
"""How long a file that is not touched still counts as held, where nothing else shows it. Network file systems may show
a time of change up to a minute late."""
_TAKING_OVER = ".lock.taking-over"
_ENDING_SECONDS = 10.0
"""How long the system's lock of a process that has ended is waited for, while its other threads end."""
_LONGEST = 1 << 14
_ATTEMPTS = 20
_log = get_logger(__name__)
_held: dict[str, FolderLock] = {}


@dataclass(frozen=True)
class Owner:
    """Who holds a folder: the content of the file."""

    host: str
    pid: int
    started: int
    """When the process started, in clock ticks since the machine did; 0 where the system does not say."""
    machine: str
    """Start of the machine and space of process numbers, in which `pid` means something; empty where not known."""
    since: str
    command: str
    what: str
    token: str
    """Random text of this one lock."""

    def __str__(self) -> str:
        """Return the owner in words."""
        command = f", {self.command!r}" if self.command else ""
        return printable(f"process {self.pid} on host {self.host} since {self.since}{command}")


@contextmanager
def lock_folder(folder: Path, what: str) -> Iterator[FolderLock]:
    """Hold a folder for one run; one process of the run calls this, the others rely on it.

    Args:
        folder: made if it is not there.
        what: the run is, for messages: `a training run`, `an evaluation`.

    Raises:
        ConfigError: another process holds it; says which, where and since when.
    """
    lock = FolderLock(folder, what)
    lock.take()
    try:
        yield lock
    finally:
        lock.release()


class FolderLock:
    """The lock of one folder; `lock_folder` is the usual way to hold it."""

    def __init__(
        self, folder: Path, what: str, beat_seconds: float = BEAT_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        """Name a folder; `take` locks it.

        Args:
            folder: to be held.
            what: the run is, for messages.
            beat_seconds: how often the file is touched.
            silent_seconds: how long a file that is not touched counts as held, where nothing else shows it.
        """
        self.folder, self._what = folder, what
        self._path = folder / LOCK
        self._beat, self._silent = beat_seconds, silent_seconds
        self._handle: int | None = None
        self._pid = 0
        self._ended = threading.Event()

    def take(self) -> None:
        """Lock the folder.

        Raises:
            ConfigError: another process, or another part of this one, holds it.
        """
        name = os.path.realpath(self._path)
        if name in _held and _held[name]._pid == os.getpid():
            raise InUseError(f"{printable(self.folder)} is in use by another part of this process; choose another")
        owner = _this_process(self._what)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._create(owner)
        except OSError as problem:
            if self._is_ours():
                self._path.unlink(missing_ok=True)
            self._forget()
            reason = f"{problem.strerror}; two runs at once would not be noticed"
            _log.warning("%s: goes on without a lock on the folder: %s", self._path, reason)
            return
        self._pid = os.getpid()
        _held[name] = self
        threading.Thread(target=self._touch, args=(owner,), daemon=True, name="folder lock").start()

    def release(self) -> None:
        """Give the folder back, if it is held; does nothing in a process forked from the owner."""
        if self._handle is None or self._pid != os.getpid():
            return
        self._ended.set()
        _held.pop(os.path.realpath(self._path), None)
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        self._forget()

    def _create(self, owner: Owner) -> None:
        content = json.dumps(asdict(owner), ensure_ascii=True, indent=1).encode() + b"\n"
        for _ in range(_ATTEMPTS):
            try:
                self._handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                self._remove_left_over()
                continue
            os.write(self._handle, content)
            os.fsync(self._handle)
            for _ in range(100):  # whoever looks holds the system's lock for an instant
                if _system_lock(self._handle) is not False:
                    break
                time.sleep(0.01)
            if self._is_ours():
                return
            self._forget()  # removed before it had a content
        raise InUseError(f"{printable(self._path)}: other processes keep taking it; choose another folder")

    def _remove_left_over(self) -> None:
        """Remove the file of an owner that has ended; raise where it lives; return for another attempt."""
        found = _look(self._path)
        if found is None:
            return
        if found.lives:
            raise self._refusal(found)
        claim = self.folder / _TAKING_OVER
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            for _ in range(10):
                _remove_if_abandoned(claim, 2 * self._silent)
                time.sleep(0.2)
                again = _look(self._path)
                if again is None or not again.same_as(found) or not claim.exists():
                    return
            raise InUseError(
                f"{printable(self.folder)}: another process is finding out whether {found.owner or 'its owner'} "
                "is still there; wait for it, or choose another folder"
            ) from None
        _system_lock(handle)
        try:
            if not _is_open_as(claim, handle):
                return  # it was taken for left before it was locked, and removed
            if found.lives is None:
                self._watch(found, handle)
            again = _look(self._path)
            if again is not None and again.same_as(found) and not again.lives:
                self._path.unlink(missing_ok=True)
                who = found.owner or "a process that has left no name"
                _log.warning("%s: taken over from %s, which has ended", self.folder, who)
        finally:
            if _is_open_as(claim, handle):
                claim.unlink(missing_ok=True)
            os.close(handle)

    def _watch(self, found: _Found, claim: int) -> None:
        """Wait until the file has not been touched for long; raise as soon as it is touched."""
        reported = False
        while True:
            os.utime(claim)  # both times come from the file system's clock
            silent = os.fstat(claim).st_mtime - found.touched
            if silent >= self._silent:
                return
            if not reported and self._silent > 5:
                _log.info("%s: held by %s; looking whether it is still there", self.folder, found.owner or "?")
                reported = True
            time.sleep(min(self._beat / 4, 0.5))
            again = _look(self._path)
            if again is None:
                return
            if again.lives or not again.same_as(found) or again.touched != found.touched:
                raise self._refusal(again)

    def _refusal(self, found: _Found) -> InUseError:
        who = str(found.owner) if found.owner else "a process that has left no name"
        return InUseError(
            f"{printable(self.folder)} is in use by {who}; wait for it, or choose another folder for {self._what}"
        )

    def _touch(self, owner: Owner) -> None:
        """Show that the owner lives, until the lock is given back or lost."""
        handle = self._handle
        while not self._ended.wait(self._beat):
            if handle is None or self._handle != handle:
                return
            try:
                if not self._is_ours():
                    _log.error("%s: removed or taken over by another process while %s used it", self._path, owner)
                    return
                os.utime(handle)
            except OSError:  # a full disk or a server that is away for a while: tried again
                continue

    def _is_ours(self) -> bool:
        """Return whether the file at the path is ours."""
        return self._handle is not None and _is_open_as(self._path, self._handle)

    def _forget(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)


@dataclass(frozen=True)
class _Found:
    """What stands in the file of another owner."""

    owner: Owner | None
    """The owner; None where the file does not say: it has just been made, or is damaged."""
    inode: int
    touched: float
    lives: bool | None
    """Whether the owner lives; None: only further touches can show it."""

    def same_as(self, other: _Found) -> bool:
        """Tell whether both are of one owner."""
        return (self.inode, self.owner) == (other.inode, other.owner)


def _look(path: Path) -> _Found | None:
    """Return what a lock file says; None: it is gone.

    The system's lock may outlive its owner for a moment: threads of a killed process end one after the other, and a
    process that looks takes the lock too. So where the owner has ended and the lock is held, this looks again for some
    seconds.
    """
    until = time.monotonic() + _ENDING_SECONDS
    while True:
        locked, found = _look_once(path)
        if locked is not False or found is None or found.owner is None or _lives(found.owner) is not False:
            return found
        if time.monotonic() > until:
            return found
        time.sleep(0.01)


def _look_once(path: Path) -> tuple[bool | None, _Found | None]:
    """Return whether the system's lock could be taken, and what the file says."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ConfigError(f"{printable(path)}: not a lock file; remove it")
        locked, content = None, b""
        try:
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except PermissionError:  # of another user
            found = os.lstat(path)
        else:
            try:
                locked = _system_lock(handle)
                content = os.read(handle, _LONGEST)
                found = os.fstat(handle)
            finally:
                os.close(handle)
    except FileNotFoundError:
        return None, None
    owner = _parse(content, path)
    lives = True if locked is False else _lives(owner) if owner is not None else None
    return locked, _Found(owner, found.st_ino, found.st_mtime, lives)


def _parse(content: bytes, path: Path) -> Owner | None:
    try:
        return typed(Owner, parse_json(content, printable(path), ConfigError), printable(path), ConfigError)
    except ConfigError:
        return None


def _lives(owner: Owner) -> bool | None:
    """Return whether a process lives; None for one of another machine, or of another space of process numbers."""
    if not owner.machine or owner.machine != _machine():
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _start_of(owner.pid) == owner.started


def _system_lock(handle: int) -> bool | None:
    """Take the system's lock on an open file: True taken, False another holds it, None there are no locks.

    Of the two kinds the one that belongs to a process is taken: children do not inherit it.
    """
    if fcntl is None:
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return False if problem.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _this_process(what: str) -> Owner:
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    command = printable(shlex.join(sys.argv))[:300]
    pid = os.getpid()
    return Owner(socket.gethostname(), pid, _start_of(pid), _machine(), since, command, what, secrets.token_hex(8))


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> int:
    """Return when a process started, in clock ticks since the machine did; 0 where it has ended or is not visible."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return 0


def _is_open_as(path: Path, handle: int) -> bool:
    """Return whether the file at a path is the one that is open; the path is not opened, which would end the lock."""
    try:
        there, ours = os.lstat(path), os.fstat(handle)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _remove_if_abandoned(path: Path, seconds: float) -> None:
    """Remove a file that a process holds locked while it works, and that has been left by one that was killed.

    Args:
        path: of the file.
        seconds: where the system has no locks, it is taken for left when it is older than this.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        age = time.time() - os.fstat(handle).st_mtime
        # It may have been made just now, and be locked in an instant.
        if age > seconds or (age > 1 and _system_lock(handle)):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)
