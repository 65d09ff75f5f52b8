"""How a file or a folder is written so that it is there whole or not at all, whatever ends the program.

It is written under another name in the same folder and then renamed, which the file system does in one step. Without
`durable` that holds for a program that is killed; with it also for a machine that stops, at the price of a wait for the
disk.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str, *, durable: bool = False, shared: bool = False) -> None:
    """Write a text file in UTF-8; arguments and errors are those of `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), durable=durable, shared=shared)


def write_bytes(path: Path, content: bytes, *, durable: bool = False, shared: bool = False) -> None:
    """Write a file in place of the one that has its name, if any.

    Args:
        path: the file; its folder is there.
        content: all of it.
        durable: wait until the content is on the disk.
        shared: several processes or threads may write this file at once; the last one counts.

    Raises:
        OSError: the system refuses, for example because the disk is full; names the file.
    """
    mine = f"-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporary = path.with_name(f"{path.name}.writing{mine}")
    try:
        with naming(path), temporary.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, target: Path, *, replace: bool = False) -> None:
    """Give a folder that is written under another name its own.

    Args:
        temporary: the folder as it was written.
        target: its name, in the same file system.
        replace: a folder that has this name already is removed last, and comes back if the renaming fails.

    Raises:
        OSError: the system refuses; without `replace` also because a folder of this name holds something.
    """
    if not replace or not target.exists():
        os.replace(temporary, target)
        return
    old = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def wait_for_disk(path: Path) -> None:
    """Wait until a file, or the list of names a folder holds, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file or folder in a refused system call that names none: a write to an open file does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
