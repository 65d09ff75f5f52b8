"""A program for launchers to start: joins the process group, sums the ranks, writes a line to PROBE_OUT."""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist

from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device


def main() -> int:
    world = launch.read_environment()
    if "--fail-on-rank" in sys.argv and world.rank == int(sys.argv[sys.argv.index("--fail-on-rank") + 1]):
        return 3
    launch.initialize(world, Device.choose("cpu", world.local_rank), timeout_minutes=1)
    total = torch.tensor([float(world.rank + 1)])
    dist.all_reduce(total)
    line = {
        "rank": world.rank,
        "local_rank": world.local_rank,
        "world_size": world.world_size,
        "launcher": world.launcher,
        "port": world.master_port,
        "sum": total.item(),
        "argv": sys.argv[1:],
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    with open(os.environ["PROBE_OUT"], "a") as out:  # one short write per process: lines do not mix
        out.write(json.dumps(line) + "\n")
    launch.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
