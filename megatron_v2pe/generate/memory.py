"""Memory that generating takes: a batch of prompts on a rank, held against what is free before anything is allocated.

What is counted is the least it can be: the key-value cache, hidden states, angles and image features of a rank's
tokens, and the widest activations of a step. Ranks on one device share what is free on it; copies of the model that
work beside this one are not counted.
"""

from __future__ import annotations

import ctypes
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist

from megatron_v2pe.device import host_memory
from megatron_v2pe.errors import MemoryShortageError

_MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` of glibc's `mallopt`."""
_SIGNS = ("out of memory", "can't allocate memory", "Unable to allocate")


@dataclass(frozen=True)
class Need:
    """Sizes on one rank, from which the bytes it needs follow."""

    cache_bytes: int
    """Bytes of the key-value cache."""
    tokens: int
    """Prompt tokens, padding included."""
    step_tokens: int
    """Most of them that run at once."""
    tiles: int
    """Tiles encoded here."""
    tokens_per_tile: int
    hidden_size: int
    head_dim: int
    widest: int
    """Most numbers a layer holds of one token."""
    itemsize: int
    """Bytes of a number."""

    @property
    def num_bytes(self) -> int:
        """Bytes at the worst moment, at least."""
        features = 2 * self.tiles * self.tokens_per_tile * self.hidden_size * self.itemsize  # and as they are sent
        hidden = self.tokens * self.hidden_size * self.itemsize
        angles = 2 * self.tokens * self.head_dim * 4
        step = self.step_tokens * self.widest * self.itemsize
        return self.cache_bytes + hidden + max(features, angles + step)


def demand(need: int, device: torch.device, group: dist.ProcessGroup, free: int | None = None) -> None:
    """Refuse what does not fit, on every rank of a group if it does not fit on one.

    Args:
        need: bytes this rank is about to take.
        device: where.
        group: ranks that work together; all of them call this.
        free: bytes there are; looked up by default.

    Raises:
        MemoryShortageError: both numbers are printed.
    """
    place = socket.gethostname() if device.type == "cpu" else f"{socket.gethostname()} {device}"
    free = free_bytes(device) if free is None else free
    for where, needed, there in host_memory.needed_and_free(place, need, free, group):
        if needed > there:
            raise MemoryShortageError(
                f"out of memory: the prompt needs at least {_gib(needed)} on {where}, {_gib(there)} are free. More "
                "context parallel ranks, or fewer prompts together, make room"
            )


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device; on CPU also within the limit of a container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_memory.available_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory has run out, in any of PyTorch's and Python's ways."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in _SIGNS)


@contextmanager
def shortage_as_error() -> Iterator[None]:
    """Raise errors of lacking memory as MemoryShortageError; the block may hold no exchange between ranks."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortageError(f"{type(error).__name__}: {error}") from None


@cache
def return_large_blocks() -> None:
    """Have the C library give blocks of 1 MiB and more back to the system when they are freed; elsewhere than on glibc
    nothing happens.

    By itself it keeps blocks of up to 32 MiB in its heap once some have been freed, in pieces that fit no other: of a
    process that prefills 32,768 tokens about 150 MiB. A block of the system's costs its pages' first touch, little
    beside what is computed in it.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"
