"""A program for launchers to start: joins the process group, sums the ranks, writes a line to PROBE_OUT.

With `--count-in FOLDER` it then counts steps until it is asked to stop, saves its count there and starts from it the
next time: the trainer's handling of signals without its start-up time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.train.signals import StopRequest


def count(folder: Path, rank: int) -> tuple[int, int]:
    """Count steps until asked to stop; return the first and the last, the last saved by rank 0."""
    saved = folder / "saved"
    first = last = int(saved.read_text()) if saved.exists() else 0
    stop = StopRequest()
    deadline = time.monotonic() + 600  # nothing is left running by a test that failed
    while True:
        assert time.monotonic() < deadline, "nobody asked to stop"
        last += 1
        time.sleep(0.02)
        asked = torch.tensor([int(one) for one in stop.asked])
        dist.all_reduce(asked)
        if stop.agree(*asked.bool().tolist()):
            break
        if rank == 0:  # all have agreed once, so all handle signals by now
            (folder / "running").touch()
    if rank == 0:
        saved.write_text(str(last))
    return first, last


def main() -> int:
    world = launch.read_environment()
    if "--fail-on-rank" in sys.argv and world.rank == int(sys.argv[sys.argv.index("--fail-on-rank") + 1]):
        return 3
    launch.initialize(world, Device.choose("cpu", world.local_rank), timeout_minutes=10)
    total = torch.tensor([float(world.rank + 1)])
    dist.all_reduce(total)
    counted = None
    if "--count-in" in sys.argv:
        counted = count(Path(sys.argv[sys.argv.index("--count-in") + 1]), world.rank)
    line = {
        "rank": world.rank,
        "local_rank": world.local_rank,
        "world_size": world.world_size,
        "launcher": world.launcher,
        "port": world.master_port,
        "sum": total.item(),
        "argv": sys.argv[1:],
        "counted": counted,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    with open(os.environ["PROBE_OUT"], "a") as out:  # one short write per process: lines do not mix
        out.write(json.dumps(line) + "\n")
    launch.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
