"""How much memory a training step takes on a rank when two ranks share the sequence, beside one rank with all of it."""

from __future__ import annotations

import argparse
from typing import Any

from perf._training import Shape, Step
from perf._training import run as run_step

DESCRIPTION = "memory of a training step per rank at context parallel size 2 beside one process"
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
RECOMPUTE["full, attention kept"] = {**RECOMPUTE["full"], "keep_attention": True}


def run(argv: list[str]) -> dict[str, Any]:
    """Measure lengths and kinds of recompute; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py context_memory", description=DESCRIPTION)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768, 65536], help="(default: %(default)s)")
    parser.add_argument("--documents", type=int, default=1, help="that share the tokens (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="query heads of 64 (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=2, help="key-value heads (default: %(default)s)")
    parser.add_argument("--tiles", type=int, default=16, help="images in each document (default: %(default)s)")
    parser.add_argument("--recompute", nargs="+", choices=list(RECOMPUTE), default=list(RECOMPUTE))
    arguments = parser.parse_args(argv)
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    shape = Shape(arguments.layers, arguments.heads, arguments.groups)
    one, two = WorkerPool(1, 3600), WorkerPool(2, 3600)
    rows: list[dict[str, Any]] = []
    try:
        for tokens in arguments.tokens:
            for kind in arguments.recompute:
                step = {
                    "shape": shape,
                    "documents": ((tokens // arguments.documents, arguments.tiles),) * arguments.documents,
                    "supervised": 100,
                    "options": RECOMPUTE[kind],
                    "count_memory": True,
                }
                whole = one.run(run_step, step=Step(**step, cores_per_process=2))[0]
                halves = two.run(run_step, step=Step(**step, context_parallel_size=2))
                worst = max(half.tensor_bytes for half in halves)
                rows.append(
                    {
                        "tokens": tokens,
                        "recompute": kind,
                        "one MiB": round(whole.tensor_bytes / 2**20, 1),
                        "rank MiB": round(worst / 2**20, 1),
                        "share": round(worst / whole.tensor_bytes, 4),
                        "one s": round(whole.seconds, 1),
                        "two s": round(max(half.seconds for half in halves), 1),
                        "loss differs": abs(halves[0].loss - whole.loss) / whole.loss,
                    }
                )
    finally:
        one.close()
        two.close()
    return {
        "model": str(shape),
        "documents": arguments.documents,
        "tiles of each": arguments.tiles,
        "type": "fp32",
        "results": rows,
        "MiB": "tensors made in the step at the worst moment: no weights, gradient buffers, optimizer state",
        "share": "the larger of the two ranks over one process with the same pack",
    }
