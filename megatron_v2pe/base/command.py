"""How every tool ends: one line about what can be mended, a status a scheduler understands, and no process left.

A tool's `main` returns its status, with errors turned into lines by `finished`; its last line is `run_tool(main)`.
"""

from __future__ import annotations

import codecs
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from megatron_v2pe.base import exit_status, last_words
from megatron_v2pe.base.orphans import beside_first, end_with_launcher, let_children_end
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.foreign.printable import printable

GRACE_SECONDS = 20.0
"""Time for the interpreter to end once the work is done, before it is ended."""


FIRST_SECONDS = 3.0
"""Seconds for a run's first process to print an error that others have met too, and for its launcher to end them."""


def finished(
    work: Callable[[], int | None], interrupted: str = "interrupted; the same command may be given again"
) -> int:
    """Do a tool's work and return the exit status; what a user can mend becomes one line.

    Args:
        work: returns the status, None for 0.
        interrupted: what to say after Ctrl-C.
    """
    try:
        status = work()
        return _flushed(status or 0)
    except BrokenPipeError:  # `| head` has seen enough
        _forget_output()
        return exit_status.BROKEN_PIPE
    except KeyboardInterrupt:
        print_end(f"\n{interrupted}")
        return exit_status.INTERRUPTED
    except OSError as error:
        _print_after_first(f"error: {error if error.filename is not None else error.strerror or error}")
        return exit_status.of(error)
    except V2PEError as error:
        _print_after_first(f"error: {error}")
        return exit_status.of(error)


def run_tool(main: Callable[[], int]) -> NoReturn:
    """Run a tool and end this process with its status, whatever threads and readers are left."""
    _prepare_streams()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # we say in one line that a connection is lost
    end_with_launcher(exit_status.TRY_AGAIN)
    status = exit_status.INTERNAL
    try:
        status = finished(main)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print_end(ended.code)
        elif ended.code:
            last_words.leave("error: the command line cannot be read; what is wrong with it stands above")
        status = exit_status.of(ended)
    except BaseException:
        traceback.print_exc()
    let_children_end()
    status = _flushed(status)
    if status:
        end_now(status)
    timer = threading.Timer(GRACE_SECONDS, end_now, [status])
    timer.daemon = True
    timer.start()
    sys.exit(status)


def end_now(status: int) -> NoReturn:
    """End this process and the processes it has started at once, waiting for nothing."""
    import multiprocessing

    let_children_end()
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)


def print_end(text: str) -> None:
    """Print on standard error how this process ends; an error is left for torchrun too."""
    if text.startswith("error: "):
        last_words.leave(text)
    try:
        print(printable(text, lines=True), file=sys.stderr, flush=True)
    except OSError:
        pass


def _print_after_first(text: str) -> None:
    """Print an error once in a run: where the first process has it too, its launcher ends this one meanwhile."""
    if beside_first():
        time.sleep(FIRST_SECONDS)
    print_end(text)


def _flushed(status: int) -> int:
    """Write out what is buffered; return the status, or that of the error that this meets, such as a full disk."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print_end(f"error: standard output: {error.strerror}")
        _forget_output()
        return exit_status.of(error)
    return status


def _forget_output() -> None:
    """Discard what is still to be written, so that nothing complains at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _prepare_streams() -> None:
    """Open closed streams on nothing, and show letters that the terminal's encoding lacks as escapes."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would take its number
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  for as long as the process lasts
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")  # pyright: ignore[reportAttributeAccessIssue]


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Write letters an encoding lacks as JSON does, \u00e9: text stays readable, JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end
