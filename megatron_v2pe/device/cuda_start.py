"""What is settled before CUDA starts in a process: how memory is taken, which card is whose, what it can do."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import torch
import torch.distributed as dist

from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.errors import ConfigError

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Where PyTorch reads how it takes memory: the name since 2.9 first, then older ones, which it still reads."""
RANKS_PER_DEVICE = "MEGATRON_V2PE_RANKS_PER_DEVICE"
"""How many ranks may share a card on purpose, to check layouts on fewer cards than ranks; unset: 1."""
BF16_CAPABILITY = (8, 0)
"""Compute capability from which on matrix units take bf16 (Ampere)."""


def grow_segments(environ: MutableMapping[str, str] | None = None) -> None:
    """Have PyTorch's allocator grow its segments instead of adding new ones, unless the user has set how it works.

    Packs differ in length from step to step; blocks of one length leave holes the next does not fit, several GiB of
    them on a full card. To be called before CUDA is used: the variable is read when the first block is taken.
    """
    env = os.environ if environ is None else environ
    if not any(name in env for name in ALLOCATOR):
        release = tuple(int(part) for part in torch.__version__.split(".")[:2])
        env[ALLOCATOR[0 if release >= (2, 9) else 1]] = "expandable_segments:True"


def ranks_per_device() -> int:
    """Return how many ranks may share a card.

    Raises:
        ConfigError: the variable is no whole number of 1 or more.
    """
    text = os.environ.get(RANKS_PER_DEVICE, "1")
    if not is_whole_number(text) or int(text) < 1:
        raise ConfigError(f"{RANKS_PER_DEVICE}={text} is not a whole number of 1 or more")
    return int(text)


def device_index(local_rank: int) -> int:
    """Return which of this machine's cards a process takes.

    Raises:
        ConfigError: there are fewer cards than processes; both numbers are named.
    """
    share, devices = ranks_per_device(), torch.cuda.device_count()
    if local_rank // share >= devices:
        started = max(local_rank + 1, _local_world_size())
        raise ConfigError(
            f"local rank {local_rank} has no GPU: {socket.gethostname()} shows {devices} and {started} ranks were "
            f"started on it. Start {devices * share}, or set {RANKS_PER_DEVICE} where several are to share a card"
        )
    return local_rank // share


def _local_world_size() -> int:
    text = os.environ.get("LOCAL_WORLD_SIZE", "0")
    return int(text) if is_whole_number(text) else 0


def look_like_hosts(rank: int) -> None:
    """Let NCCL take several ranks on one card where that was asked for: it does if they look like several hosts."""
    if ranks_per_device() == 1:
        return
    os.environ.setdefault("NCCL_HOSTID", f"{socket.gethostname()}-{rank}")
    for name in ("NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"):
        os.environ.setdefault(name, "1")


def claim_device(store: dist.Store, index: int, world_size: int) -> None:
    """Take a card for this rank; each rank of a run calls this once.

    Args:
        store: the run's.
        index: of the card on this machine.
        world_size: ranks of the run.

    Raises:
        ConfigError: other ranks have it already. NCCL would say "duplicate GPU", or wait without end.
    """
    share = ranks_per_device()
    host = os.environ.get("NCCL_HOSTID", socket.gethostname())  # NCCL, too, goes by what it says
    name = str(torch.cuda.get_device_properties(index).uuid)  # the same card under any CUDA_VISIBLE_DEVICES
    if store.add(f"device {host} {name}", 1) > share:
        raise ConfigError(
            f"{share + 1} of {world_size} ranks took one GPU, device {index} of the {torch.cuda.device_count()} that "
            f"{host} shows: start one rank per GPU, each with a LOCAL_RANK of its own. To share cards on purpose, set "
            f"{RANKS_PER_DEVICE}"
        )


def check_precision(precision: str, index: int) -> None:
    """Check that a card computes in the type a run asks for.

    Raises:
        ConfigError: it has no bf16; what was found and what is needed.
    """
    found = torch.cuda.get_device_capability(index)
    if precision == "bf16" and found < BF16_CAPABILITY:
        name, needed = torch.cuda.get_device_name(index), "{}.{}".format(*BF16_CAPABILITY)
        raise ConfigError(
            f"train.precision bf16 needs a GPU of compute capability {needed} or more, {name} has "
            f"{found[0]}.{found[1]}; use train.precision fp32"
        )
