"""How long the first stage takes over images when two context-parallel ranks share the tiles, beside one rank alone."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from perf._training import Shape, Step, cores, micro_batch, model_of

DESCRIPTION = "vision tower, exchange of features and fusion: 2 context parallel ranks beside one, a core each"


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py vision_split", description=DESCRIPTION)
    parser.add_argument("--tiles", type=int, default=32, help="tiles of 448 pixels (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of the tower (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="of the tower, 64 wide (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    shape = Shape(layers=1, heads=4, groups=2, vision_layers=arguments.layers, vision_heads=arguments.heads)
    step = {"shape": shape, "documents": ((arguments.tiles * 288, arguments.tiles),), "supervised": 10}
    one, two = WorkerPool(1, 1800), WorkerPool(2, 1800)
    times: dict[int, list[float]] = {1: [], 2: []}
    try:
        for _ in range(arguments.repeats):
            times[1].append(max(one.run(first_stage, step=Step(**step))))
            times[2].append(max(two.run(first_stage, step=Step(**step, context_parallel_size=2))))
    finally:
        one.close()
        two.close()
    ratios = [two_ranks / one_rank for one_rank, two_ranks in zip(times[1], times[2], strict=True)]
    return {
        "model": str(shape),
        "tiles": arguments.tiles,
        "one rank s": round(statistics.median(times[1]), 3),
        "two ranks s": round(statistics.median(times[2]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "seconds": "medians, forward and backward of tower, projector, exchange and fusion; one core per process",
    }


def first_stage(step: Step) -> float:
    """Run the first stage once forward and backward on this rank; return the seconds until every rank is done."""
    with cores(1), model_of(step) as model:
        batch = micro_batch(step, model)
        dist.barrier()
        began = time.perf_counter()
        hidden = model._first_stage(batch)
        hidden.backward(torch.ones_like(hidden))
        dist.barrier()
        return time.perf_counter() - began
