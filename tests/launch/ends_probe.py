"""A program for launchers to start that ends in a way of choice: `ends_probe.py HOW FOLDER`, on rank 1; rank 0 waits.

It joins the others as the tools do, without their start-up time. A file `about-to-end` in the folder says that all have
met and the cause is near.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_v2pe.base.command import run_tool
from megatron_v2pe.device import launch, watchdog
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import DataError

LIMITS = {"stuck": 11.0}
"""Seconds in which something must move, 600 but for these: a machine that stands still is not taken for a hang. Within
so short a time the processes join only once all of them have started."""


def end(how: str) -> None:
    if how == "mend":
        raise DataError("a.jsonl:3: no such image")
    if how == "defect":
        raise RuntimeError("not what was meant")
    if how == "stuck":
        time.sleep(600)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    how, folder = sys.argv[1:]
    world = launch.read_environment()
    # What would keep a process alive: a thread that waits, and a child that takes no notice of SIGTERM.
    threading.Thread(target=time.sleep, args=(600,)).start()
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Pipe(duplex=False)
    fork.Process(target=child, args=(done,), daemon=True).start()
    ready.recv()  # a child whose parent ends before it has asked to end with it stays
    if how in LIMITS:
        meet(Path(folder), world)
    with launch.joined(world, Device.choose("cpu"), LIMITS.get(how, 600.0) / 60, Path(folder)):
        dist.all_reduce(torch.ones(1))
        watchdog.progress("about to end")
        if world.rank == 1:
            (Path(folder) / "about-to-end").touch()
            end(how)
        dist.all_reduce(torch.ones(1))
    os._exit(0)


def meet(folder: Path, world: launch.World) -> None:
    (folder / f"started-{world.rank}").touch()
    while len(list(folder.glob("started-*"))) < world.world_size:
        time.sleep(0.02)


def child(ready: Connection) -> None:
    from megatron_v2pe.base.orphans import killed_with_parent

    killed_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send("will end with its parent")
    time.sleep(600)


if __name__ == "__main__":
    run_tool(main)
