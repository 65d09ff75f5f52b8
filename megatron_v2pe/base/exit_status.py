"""Exit statuses of our programs: a scheduler can distinguish "try again" from "the user must mend something".

The table for users is in docs/launching.md.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from megatron_v2pe.errors import CommunicationError, LostProcessError, SpaceError, V2PEError

FINISHED = 0
"""The work is done, or was stopped in good order by SIGTERM, SIGUSR1 or SIGHUP: everything is saved."""

INTERNAL = 1
"""A defect of ours; a traceback says where. `check_data` also ends so when files are missing."""

MEND = 2
"""The user has something to mend: without that the same command ends the same way."""

TRY_AGAIN = 75
"""Something around the run failed (EX_TEMPFAIL): the same command goes on from the last checkpoint."""

INTERRUPTED = 130
"""Ctrl-C (128 + SIGINT): a training run has saved before, and the same command goes on."""

BROKEN_PIPE = 141
"""The reader of the output has ended (128 + SIGPIPE), as in `... | head`."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a used-up quota, a limit on a file's size."""


def of(error: BaseException) -> int:
    """Return the status of a program that ends with an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if any(isinstance(cause, OSError) and cause.errno in NO_SPACE for cause in _causes(error)):
        return TRY_AGAIN
    if isinstance(error, (CommunicationError, LostProcessError, SpaceError)):
        return TRY_AGAIN
    return MEND if isinstance(error, (V2PEError, OSError)) else INTERNAL


def of_signal(number: int) -> int:
    """Return the status a shell gives a process that a signal has ended."""
    return 128 + number


def in_words(status: int) -> str:
    """Return what a status asks for; for messages."""
    if status < 0:
        status = of_signal(-status)
    return {
        FINISHED: "finished",
        INTERNAL: "a defect, see its traceback",
        MEND: "something has to be mended, see its message",
        TRY_AGAIN: "the same command goes on",
        INTERRUPTED: "interrupted, the same command goes on",
    }.get(status, "the same command goes on" if status >= 128 else "see its output")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
