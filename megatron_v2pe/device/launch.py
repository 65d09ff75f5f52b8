"""How processes find each other: the only reader of RANK, WORLD_SIZE and SLURM_* in the package.

Processes meet at a store of PyTorch, a table of bytes that rank 0 or the launcher holds. Nothing in it is unpickled.
Where all processes are on one machine, the store, gloo and NCCL listen on its loopback interface only.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from megatron_v2pe.base.orphans import let_children_end
from megatron_v2pe.base.whole_numbers import is_whole_number
from megatron_v2pe.device import cuda_start, watchdog
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import CommunicationError, ConfigError

DEFAULT_MASTER_PORT = 34229
"""Where processes meet that were started by hand; launchers choose a port of their own."""

LOOPBACK = "127.0.0.1"
_SLURM_PORTS = range(20000, 32000)
"""Ports below those that the system gives to a program which asks for any."""

_MEET_SECONDS = 600.0
"""Seconds for rank 0 to appear: programs on a slow disk do not start at the same time."""

_ANSWER_SECONDS = 20.0
"""Seconds for a store to answer."""

_GOODBYE_SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    master_addr: str = LOOPBACK
    master_port: int = DEFAULT_MASTER_PORT
    launcher: str = "single"
    """`torchrun`, `slurm` or `single`."""
    one_machine: bool = False
    """All processes are known to be on this machine."""
    run_id: str = ""
    """The same for all processes of a run and for no others, as far as the launcher says."""
    store_is_there: bool = False
    """The launcher holds the store, not rank 0."""

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
    if "RANK" in env and "WORLD_SIZE" in env:
        size, address = _integer(env, "WORLD_SIZE"), env.get("MASTER_ADDR", LOOPBACK)
        one = _integer(env, "LOCAL_WORLD_SIZE", 0) == size or is_loopback(address)
        attempt = env.get("TORCHELASTIC_RESTART_COUNT", "0")
        return World(
            rank=_integer(env, "RANK"),
            local_rank=_integer(env, "LOCAL_RANK", 0),
            world_size=size,
            master_addr=LOOPBACK if one else address,
            master_port=_port(env, DEFAULT_MASTER_PORT) if size > 1 else DEFAULT_MASTER_PORT,
            launcher="torchrun",
            one_machine=one,
            run_id=f"{env['TORCHELASTIC_RUN_ID']}/{attempt}" if "TORCHELASTIC_RUN_ID" in env else "",
            store_is_there=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
    if "SLURM_PROCID" in env and _integer(env, "SLURM_NTASKS", 1) > 1:
        address = env.get("MASTER_ADDR") or first_host(env.get("SLURM_NODELIST", LOOPBACK))
        one = env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES")) == "1" or is_loopback(address)
        return World(
            rank=_integer(env, "SLURM_PROCID"),
            local_rank=_integer(env, "SLURM_LOCALID", 0),
            world_size=_integer(env, "SLURM_NTASKS"),
            master_addr=LOOPBACK if one else address,
            master_port=_port(env, _slurm_port(env)),
            launcher="slurm",
            one_machine=one,
            run_id=".".join(env.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")),
        )
    return World()


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm node list: `gpu[003-006,9],login1` gives `gpu003`."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?", nodelist)
    if match is None:
        raise ConfigError(f"SLURM_NODELIST {nodelist!r} names no host")
    prefix, numbers = match.groups()
    return prefix if numbers is None else prefix + re.split(r"[,-]", numbers)[0]


def slurm_job() -> str:
    """Return the number of the Slurm job this process belongs to, "" outside of one."""
    return os.environ.get("SLURM_JOB_ID", "")


def is_loopback(address: str) -> bool:
    """Tell whether an address reaches this machine only from itself."""
    return address in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", address) is not None


def stay_on_loopback() -> None:
    """Have gloo and NCCL listen on the loopback interface; what the user has set stays."""
    names = [name for _, name in socket.if_nameindex()]
    for name in ("lo", "lo0"):
        if name in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return


def listener(port: int, one_machine: bool) -> socket.socket:
    """Return a socket that listens for the processes of a run.

    Args:
        port: 0 for any that is free.
        one_machine: only processes of this machine are to reach it.

    Raises:
        ConfigError: the port is in use, or may not be used.
    """
    both = not one_machine and socket.has_dualstack_ipv6()
    try:  # connections that have ended do not hold the port: create_server sees to that
        return socket.create_server(
            (LOOPBACK if one_machine else "", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            backlog=1024,
            dualstack_ipv6=both,
        )
    except OSError as error:
        why = "is in use, by another run or program" if error.errno == errno.EADDRINUSE else error.strerror
        free = "leave MASTER_PORT away, or set it to one that is free" if one_machine else "set MASTER_PORT to another"
        raise ConfigError(f"port {port} on {socket.gethostname()} {why}; {free}") from error


def hold_store(port: int, one_machine: bool, timeout: timedelta) -> dist.TCPStore:
    """Return a store held by this process.

    Raises:
        ConfigError: the port is in use, or may not be used.
    """
    ours = listener(port, one_machine)
    port = ours.getsockname()[1]
    return dist.TCPStore(LOOPBACK, port, None, True, timeout, wait_for_workers=False, master_listen_fd=ours.detach())


def initialize(world: World, device: Device, timeout_minutes: float = 30.0) -> None:
    """Activate the device and join the process group of the whole run.

    Raises:
        ConfigError: the port of the meeting is in use, or another run meets there; or ranks took one GPU.
        CommunicationError: no other process of the run was found.
    """
    device.activate()
    if dist.is_initialized():
        return
    timeout = timedelta(minutes=timeout_minutes)
    if world.world_size == 1:
        store: dist.Store = dist.HashStore()
    else:
        if world.one_machine:
            stay_on_loopback()
        store = _meet(world, timeout)
        if device.kind == "cuda":
            cuda_start.claim_device(store, device.index, world.world_size)
            cuda_start.look_like_hosts(world.rank)
    dist.init_process_group(device.backend, store=store, rank=world.rank, world_size=world.world_size, timeout=timeout)


def shutdown() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(
    world: World,
    device: Device,
    timeout_minutes: float,
    dumps: Path | None = None,
    leave: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Take part in a run: when one process ends for an error, all end, with one message.

    Args:
        world: this process's place.
        device: of this process.
        timeout_minutes: how long one process waits for another, and how long nothing may move in the run.
        dumps: folder for what every thread was doing when nothing moved; standard error has it too.
        leave: called before the process group is left.

    Raises:
        SystemExit: with the status of the run, where several processes end for an error, which is printed already.
    """
    initialize(world, device, timeout_minutes)
    guard = None
    if world.world_size > 1:
        if threading.current_thread() is threading.main_thread() and (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # one that waits for others cannot take an exception
        guard = watchdog.start(world, lambda: _connect(world, _ANSWER_SECONDS), timeout_minutes * 60, dumps)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        let_children_end()
        if guard is not None:
            sys.exit(guard.report(error))
        if (ours := watchdog.plain(error, alone=True)) is not error:
            raise ours from error
        raise
    else:
        if guard is not None:
            guard.finish(_GOODBYE_SECONDS)
    finally:
        if guard is None or guard.left:
            leave()
            shutdown()


def _meet(world: World, timeout: timedelta) -> dist.Store:
    """Return the store of the run once it is certain that it is the run's."""
    global _held, _meetings
    _meetings += 1
    if world.rank == 0 and not world.store_is_there:
        _held = None  # that of an earlier meeting, at the same port
        _held = hold_store(world.master_port, world.one_machine, timeout)
        store: dist.Store = dist.PrefixStore(prefix(world.run_id, _meetings), _held)
    else:
        store = _connect(world, min(timeout.total_seconds(), _MEET_SECONDS))
        store.set_timeout(timeout)
    if store.add(f"rank {world.rank}", 1) > 1:
        raise ConfigError(
            f"two processes of rank {world.rank} meet at {world.master_addr}:{world.master_port}: another run uses "
            "this port; set MASTER_PORT to one that is free"
        )
    return store


_held: dist.TCPStore | None = None
"""The store, if this process holds it: it closes when this object goes."""

_meetings = 0
"""How often this process has joined a group; all processes of a run have joined as often."""


def prefix(run_id: str, meeting: int) -> str:
    """Return what stands before every key of a run's meeting, the first of its processes being 1."""
    return f"{run_id}/{meeting}"


def _connect(world: World, seconds: float) -> dist.Store:
    """Return a connection of its own to the run's store, which may be `seconds` away from being opened."""
    where = f"{world.master_addr}:{world.master_port}"
    me = f"rank {world.rank} on {socket.gethostname()}"
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((world.master_addr, world.master_port), timeout=5).close()
            break
        except OSError as error:
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            raise CommunicationError(
                f"{me} finds nobody at {where} within {seconds:.0f} s ({error}): did rank 0 start, and do MASTER_ADDR "
                "and MASTER_PORT name its machine and a port that others reach?"
            ) from error
    try:
        timeout = timedelta(seconds=_ANSWER_SECONDS)
        store = dist.TCPStore(world.master_addr, world.master_port, None, False, timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise ConfigError(f"{me}: what listens at {where} is another program; set MASTER_PORT to another") from error
    return dist.PrefixStore(prefix(world.run_id, _meetings), store)


def _slurm_port(env: Mapping[str, str]) -> int:
    """Return the port of a Slurm step: another for every job, and for every step of it."""
    job, step = _integer(env, "SLURM_JOB_ID", 0), env.get("SLURM_STEP_ID", "0")
    number = job * 16 + (int(step) if is_whole_number(step) else 0)
    return _SLURM_PORTS[number % len(_SLURM_PORTS)]


def _port(env: Mapping[str, str], default: int) -> int:
    port = _integer(env, "MASTER_PORT", default)
    if not 0 < port < 65536:
        raise ConfigError(f"the launcher's variable MASTER_PORT={port} is not a port, 1 to 65535")
    return port


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
