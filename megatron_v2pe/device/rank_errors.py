"""How an error of one rank is raised on all ranks, so that no rank waits for one that has left.

`raise_on_all_ranks`, `run_on_first_rank` and `share_from_first_rank` send every error a user can mend (`V2PEError`) and
every refused system call (`OSError`) to all ranks, and the error keeps its class. An error of the program itself ends
its own process alone; the launcher and the watchdog then end the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from megatron_v2pe import errors
from megatron_v2pe.base.exit_status import NO_SPACE
from megatron_v2pe.errors import CheckpointError, SpaceError, V2PEError
from megatron_v2pe.foreign.printable import printable

Result = TypeVar("Result")


def raise_on_all_ranks(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Run `action` on every rank of a group and return its result; an error of any rank is raised on all.

    Args:
        action: run on every rank.
        group: the ranks that call this; all by default.

    Raises:
        V2PEError: what any rank met, of the class it had there; the first rank's where several met one.
    """
    result: Result | None = None
    problem: V2PEError | None = None
    try:
        result = action()
    except V2PEError as error:
        problem = error
    except OSError as error:
        problem = as_error(error)
    if (size := dist.get_world_size(group)) == 1:
        if problem is not None:
            raise problem
        return cast(Result, result)
    problems: list[tuple[str, str] | None] = [None] * size
    mine = None if problem is None else (type(problem).__name__, str(problem))
    dist.all_gather_object(problems, mine, group=group)
    for found in problems:
        if found is not None:
            raise _error(*found)
    return cast(Result, result)


def run_on_first_rank(action: Callable[[], Result]) -> Result | None:
    """Run `action` on rank 0 while the others wait; return its result there, None elsewhere.

    Raises:
        V2PEError: what rank 0 met, on every rank.
    """
    return raise_on_all_ranks(lambda: action() if dist.get_rank() == 0 else None)


def share_from_first_rank(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 while the others wait, and return its result on every rank.

    Raises:
        V2PEError: what rank 0 met, on every rank.
    """
    found: list[Result | None] = [run_on_first_rank(action)]
    dist.broadcast_object_list(found, src=0)
    return cast(Result, found[0])


def as_error(error: OSError) -> V2PEError:
    """Return a refused system call as an error a user can mend: no room (`SpaceError`), or an unusable file."""
    place = "" if error.filename is None else f"{printable(error.filename)}: "
    if error.errno in NO_SPACE:
        return SpaceError(f"{place}{error.strerror}; {_free(error.filename)}make room and run the same command again")
    return CheckpointError(f"{place}{error.strerror or error}")


def _free(filename: str | bytes | int | None) -> str:
    try:
        folder = os.path.dirname(os.path.abspath(os.fsdecode(cast(str, filename))))
        return f"{shutil.disk_usage(folder).free} bytes are free; "
    except (OSError, TypeError):
        return ""


def _error(name: str, text: str) -> V2PEError:
    kind = getattr(errors, name, V2PEError)
    return kind(text)
