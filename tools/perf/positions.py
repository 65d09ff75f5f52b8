"""How long the positions of a long document take, beside the reference's floating construction in the same run."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from megatron_v2pe.errors import ConfigError
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.settings import Stride, StridePolicy, parse_stride
from megatron_v2pe.workshop.measuring.float_positions import collapsed, float_construction, miscounted

DESCRIPTION = "positions of a long document with many images: lattice beside floating construction"

Image = tuple[int, int]


def run(argv: list[str]) -> dict[str, Any]:
    """Measure every stride asked for; see `--help` for the arguments."""
    arguments = _parser().parse_args(argv)
    images = _images(arguments.tokens, arguments.images, arguments.tokens_per_tile, arguments.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        rows = [_measure(word, images, arguments) for word in arguments.strides]
    finally:
        torch.set_num_threads(threads)
    return {
        "tokens": arguments.tokens,
        "images": len(images),
        "tokens per tile": arguments.tokens_per_tile,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "results": rows,
        "times": "medians in ms, taken in turns",
        "wrong images": "too many or too few positions: the reference rejects the document",
        "same position": "tokens that share theirs with the token before",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py positions", description=DESCRIPTION)
    parser.add_argument("--tokens", type=int, default=1 << 20, help="tokens of the document (default: %(default)s)")
    parser.add_argument("--images", type=int, default=3000, help="images of one tile (default: %(default)s)")
    parser.add_argument("--tokens-per-tile", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument(
        "--strides",
        nargs="+",
        default=["random", "1", "16", "64", "256"],
        help="numbers, or `random` for one per image",
    )
    parser.add_argument("--repeats", type=int, default=9, help="measurements of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of gaps between images and of strides")
    return parser


def _images(tokens: int, count: int, tokens_per_tile: int, seed: int) -> list[Image]:
    """Spread images of one tile over the document, with text of random lengths between them."""
    text = tokens - count * (tokens_per_tile + 2)
    if count < 1 or text < 0:
        needed = max(count, 1) * (tokens_per_tile + 2)
        raise ConfigError(f"{count} images of {tokens_per_tile} tokens need {needed} tokens, the document has {tokens}")
    generator = random.Random(seed)
    borders = sorted(generator.randint(0, text) for _ in range(count))
    return [(before + number * (tokens_per_tile + 2) + 1, 1) for number, before in enumerate(borders)]


def _measure(word: str, images: list[Image], arguments: argparse.Namespace) -> dict[str, Any]:
    per_tile, length = arguments.tokens_per_tile, arguments.tokens
    policy = StridePolicy("v2pe_rnd", seed=arguments.seed)
    strides: list[Stride] = (
        policy.draw(len(images), per_tile, epoch=0, sample=0)
        if word == "random"
        else [parse_stride(word)] * len(images)
    )
    denominator = policy.denominator(per_tile) if word == "random" else None
    floats = [float(stride) for stride in strides]
    made = position_ticks(length, images, strides, per_tile, denominator)
    ticks, used = made.values, made.denominator
    theirs = float_construction(length, images, floats, per_tile)
    ours_ms, theirs_ms = _medians(
        arguments.repeats,
        lambda: position_ticks(length, images, strides, per_tile, denominator),
        lambda: float_construction(length, images, floats, per_tile),
    )
    return {
        "stride": word,
        "lattice ms": round(ours_ms, 3),
        "float ms": round(theirs_ms, 3),
        "ratio": round(theirs_ms / ours_ms, 1),
        "lattice same position": collapsed(ticks),
        "float same position": collapsed(theirs.positions),
        "float wrong images": miscounted(theirs, images, per_tile),
        "float right": bool(len(theirs.positions) == length and torch.equal(theirs.positions.double(), ticks / used)),
    }


def _medians(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Milliseconds of each function, measured in turns so that a busy moment strikes all."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(max(repeats, 1)):
        for function, taken in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            taken.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(taken) for taken in times]
