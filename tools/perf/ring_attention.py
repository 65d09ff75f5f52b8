"""How fast attention is when two processes with one core each share a sequence, beside one process with two cores."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.parallel.attention.all_to_all import all_to_all_attention
from megatron_v2pe.parallel.attention.ring import ring_attention
from megatron_v2pe.parallel.zigzag import ZigzagLayout
from perf._training import cores

DESCRIPTION = "attention forward and backward: ring and all-to-all on 2 processes beside one process, same cores"
WIDTH = 64
METHODS = ("ring", "all-to-all")


def run(argv: list[str]) -> dict[str, Any]:
    """Measure packs of one and of several documents; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py ring_attention", description=DESCRIPTION)
    parser.add_argument("--packs", nargs="+", default=["16384", "32768", "4x4096", "4x8192"], help="DOCUMENTSxTOKENS")
    parser.add_argument("--heads", type=int, default=8, help="query heads of 64 (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="key-value heads (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: both)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each, in turns (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.heads % arguments.groups:
        raise ConfigError(f"--heads {arguments.heads} is no multiple of --groups {arguments.groups}")
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    one, two = WorkerPool(1, 1800), WorkerPool(2, 1800)
    try:
        rows = [_measure(pack, arguments, one, two) for pack in arguments.packs]
    finally:
        one.close()
        two.close()
    return {
        "heads": arguments.heads,
        "groups": arguments.groups,
        "width": WIDTH,
        "type": "fp32",
        "repeats": arguments.repeats,
        "results": rows,
        "seconds": "medians, forward and backward; one process on two cores, two processes on one core each",
        "speed": "ratios of seconds taken in turns: above 1, two processes are faster than one; the median",
    }


def _measure(pack: str, arguments: argparse.Namespace, one: Any, two: Any) -> dict[str, Any]:
    documents, _, tokens = pack.rpartition("x")
    lengths = (int(tokens),) * int(documents or 1)
    shape = {"lengths": lengths, "heads": arguments.heads, "groups": arguments.groups}
    taken: dict[str, list[float]] = {"one": [], **{method: [] for method in arguments.methods}}
    for _ in range(arguments.repeats):
        taken["one"].append(max(one.run(attend, **shape, method="ring", threads=2)))
        for method in arguments.methods:
            taken[method].append(max(two.run(attend, **shape, method=method, threads=1)))
    row: dict[str, Any] = {"pack": pack}
    row |= {f"{name} s": round(statistics.median(seconds), 3) for name, seconds in taken.items()}
    for name in arguments.methods:
        ratios = [a / b for a, b in zip(taken["one"], taken[name], strict=True)]
        row[f"{name} speed"] = round(statistics.median(ratios), 3)
    return row


def attend(lengths: tuple[int, ...], heads: int, groups: int, method: str, threads: int) -> float:
    """Attend once forward and backward on this rank; return the seconds until every rank is done."""
    group = dist.group.WORLD
    assert group is not None
    layout, generator = ZigzagLayout(lengths, group.size()), torch.Generator().manual_seed(dist.get_rank())
    counts = (heads, groups, groups, heads)
    tensors = [torch.randn(layout.num_local_tokens, n, WIDTH, generator=generator) for n in counts]
    query, key, value = (tensor.requires_grad_() for tensor in tensors[:3])
    order = layout.documents_in_order()
    with cores(threads):
        dist.barrier()
        began = time.perf_counter()
        if method == "ring":
            output, _ = ring_attention(query, key, value, layout.local_seqlens, group, WIDTH**-0.5)
        else:
            output, _ = all_to_all_attention(query, key, value, layout.seqlens, order, group, WIDTH**-0.5)
        output.backward(tensors[3])
        dist.barrier()
        return time.perf_counter() - began
