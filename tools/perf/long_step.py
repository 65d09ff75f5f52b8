"""A real training step over one very long document on two processes, and the longest pack that fits this machine."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from megatron_v2pe.errors import ConfigError
from perf._training import Shape, Step
from perf._training import run as run_step

DESCRIPTION = "a training step of 262,144 tokens in one document on 2 processes; the longest pack that fits"
OPTIONS = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "recompute_vision": True,
    "keep_attention": True,
}


def run(argv: list[str]) -> dict[str, Any]:
    """Run the step, then look for the longest pack; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py long_step", description=DESCRIPTION)
    parser.add_argument("--tokens", type=int, default=262144, help="of the document; 0: none (default: %(default)s)")
    parser.add_argument("--tiles", type=int, default=256, help="images in it, 256 tokens each (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of the decoder (default: %(default)s)")
    parser.add_argument("--memory-gib", type=float, default=24.0, help="of the machine (default: %(default)s)")
    parser.add_argument("--probe", type=int, nargs="*", default=[1 << 18, 1 << 19], help="packs to measure memory on")
    parser.add_argument("--document", type=int, default=2048, help="tokens of the documents of these packs")
    arguments = parser.parse_args(argv)
    if any(tokens % arguments.document for tokens in arguments.probe):
        raise ConfigError(f"--probe {arguments.probe}: not all are multiples of --document {arguments.document}")
    shape = Shape(arguments.layers, heads=2, groups=1, vision_layers=2, vision_heads=1)
    result: dict[str, Any] = {"model": str(shape), "type": "fp32", "recompute": "full, attention kept; tower too"}
    if arguments.tokens:
        found = _processes(2, shape, ((arguments.tokens, arguments.tiles),))
        result |= {
            "tokens": arguments.tokens,
            "tiles": arguments.tiles,
            "step s": round(max(rank.seconds for rank in found), 1),
            "loss": found[0].loss,
            "GiB of each rank": [round(rank.resident_bytes / 2**30, 2) for rank in found],
        }
        print(f"step of {arguments.tokens} tokens: {result}; now packs of {arguments.probe} tokens", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for processes in (1, 2):
        sizes = {tokens: _resident(processes, shape, tokens, arguments.document) for tokens in arguments.probe}
        row: dict[str, Any] = {"processes": processes}
        row |= {
            f"{tokens} tokens, GiB": round(sum(size) / 2**30, 2) if size else "does not fit"
            for tokens, size in sizes.items()
        }
        sizes = {tokens: size for tokens, size in sizes.items() if size}
        if len(sizes) > 1:
            (few, small), *_, (many, large) = sorted((tokens, sum(size)) for tokens, size in sizes.items())
            each = (large - small) / (many - few)
            row["KiB a token and rank"] = round(each / 1024 / processes, 2)
            row["tokens that fit"] = int((arguments.memory_gib * 2**30 - small) / each + few)
        rows.append(row)
    if rows:
        result["memory"] = rows
        result["GiB"] = "resident, all processes together, packs of short documents: memory is linear in length"
        result["tokens that fit"] = f"in {arguments.memory_gib} GiB shared by all processes, by the line through both"
    return result


def _resident(processes: int, shape: Shape, tokens: int, document: int) -> list[int]:
    """Return the resident bytes of each process in a step over so many tokens; nothing where they do not fit."""
    count = tokens // document
    documents = tuple((document, int(number % 8 == 0)) for number in range(count))
    try:
        return [rank.resident_bytes for rank in _processes(processes, shape, documents)]
    except AssertionError as error:
        if "the process died" not in str(error):
            raise
        return []  # the system ended a process that asked for more memory than there is


def _processes(count: int, shape: Shape, documents: tuple[tuple[int, int], ...]) -> list[Any]:
    """Run one step in new processes, whose memory is theirs alone."""
    from megatron_v2pe.workshop.worker_pool import WorkerPool

    available = len(os.sched_getaffinity(0))
    pool = WorkerPool(count, 7200)
    try:
        step = Step(shape, documents, 10, count, max(available // count, 1), OPTIONS)
        return pool.run(run_step, step=step)
    finally:
        pool.close()
