"""How processes find each other: the only reader of RANK, WORLD_SIZE and SLURM_* in the package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import ConfigError

DEFAULT_MASTER_PORT = 34229


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_MASTER_PORT
    launcher: str = "single"
    """`torchrun`, `slurm` or `single`."""

    def __post_init__(self) -> None:
        """Refuse a rank outside the world."""
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is outside a world of {self.world_size} processes")


def read_environment(environ: Mapping[str, str] | None = None) -> World:
    """Read the launcher's variables: torchrun's, else Slurm's, else a single process.

    Raises:
        ConfigError: a variable is not a number, or the launcher's variables are incomplete.
    """
    env = os.environ if environ is None else environ
    port = _integer(env, "MASTER_PORT", DEFAULT_MASTER_PORT)
    if "RANK" in env and "WORLD_SIZE" in env:
        return World(
            rank=_integer(env, "RANK"),
            local_rank=_integer(env, "LOCAL_RANK", 0),
            world_size=_integer(env, "WORLD_SIZE"),
            master_addr=env.get("MASTER_ADDR", "127.0.0.1"),
            master_port=port,
            launcher="torchrun",
        )
    if "SLURM_PROCID" in env and _integer(env, "SLURM_NTASKS", 1) > 1:
        return World(
            rank=_integer(env, "SLURM_PROCID"),
            local_rank=_integer(env, "SLURM_LOCALID", 0),
            world_size=_integer(env, "SLURM_NTASKS"),
            master_addr=env.get("MASTER_ADDR") or first_host(env.get("SLURM_NODELIST", "127.0.0.1")),
            master_port=port,
            launcher="slurm",
        )
    return World(master_port=port)


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: `gpu[003-006,9],login1` gives `gpu003`."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodelist)
    if match is None:
        raise ConfigError(f"SLURM_NODELIST {nodelist!r} names no host")
    prefix, numbers = match.groups()
    return prefix if numbers is None else prefix + re.split(r"[,-]", numbers)[0]


def initialize(world: World, device: Device, timeout_minutes: float = 30.0) -> None:
    """Activate the device and join the process group of the whole run."""
    device.activate()
    if dist.is_initialized():
        return
    timeout = timedelta(minutes=timeout_minutes)
    if world.world_size == 1:
        dist.init_process_group(device.backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    store = "env://" if world.launcher == "torchrun" else f"tcp://{world.master_addr}:{world.master_port}"
    dist.init_process_group(
        device.backend, init_method=store, rank=world.rank, world_size=world.world_size, timeout=timeout
    )


def shutdown() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _integer(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None:
        if default is None:
            raise ConfigError(f"the launcher's variable {name} is missing")
        return default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"the launcher's variable {name}={value!r} is not a whole number") from None
