"""What ranks see where one of them meets an error: run in the processes of a pool."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import torch.distributed as dist

from megatron_v2pe import errors
from megatron_v2pe.device import rank_errors


def _fail(kind: str, failing: list[int]) -> int:
    rank = dist.get_rank()
    if rank in failing and kind == "OSError":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/here/file")
    if rank in failing:
        raise getattr(errors, kind)(f"of rank {rank}")
    return rank


def seen(kind: str, failing: list[int], how: str) -> tuple[str, str]:
    """Return the class and text of the error this rank sees, or its result.

    Args:
        kind: class of the error.
        failing: ranks that meet it.
        how: function of `rank_errors`.
    """
    run: Callable[[Callable[[], int]], int | None] = getattr(rank_errors, how)
    try:
        return "result", repr(run(lambda: _fail(kind, failing)))
    except errors.V2PEError as error:
        return type(error).__name__, str(error)
