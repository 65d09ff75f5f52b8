"""How fast each attention kernel is on this device, forward and backward, and from which length a dense call pays.

The numbers behind the rule in `megatron_v2pe/parallel/attention/mixed_kernels.py`: each kernel of this machine on the
shapes of a step of InternVL2-2B (one long document, equal ones, a mixed pack, a block of a ring, the tower's tiles),
and short documents by the dozen, dense and in one launch. On the CPU the same in small.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.device.device import Device
from megatron_v2pe.parallel.attention.attention_backend import usable
from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel
from megatron_v2pe.parallel.attention.chunked import Chunked
from megatron_v2pe.parallel.attention.core import batched_attention
from megatron_v2pe.parallel.attention.cudnn import Cudnn
from megatron_v2pe.parallel.attention.flash import TorchFlash
from megatron_v2pe.parallel.attention.kernel_choice import HALVES, candidates, probed
from megatron_v2pe.parallel.attention.mixed_kernels import Mixed, Rule

DESCRIPTION = "attention kernels of this device: forward and backward of a step's blocks, dense beside one launch"
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-4}
"""Largest difference from plain attention in float32 over the largest entry; see `kernel_choice.TOLERANCE`."""


@dataclass(frozen=True)
class Case:
    """A block to attend."""

    name: str
    query_lens: tuple[int, ...]
    key_lens: tuple[int, ...] | None = None
    """None: a causal block, the keys are the queries' own."""
    heads: int = 16
    groups: int = 8
    width: int = 128

    @property
    def block(self) -> AttentionBlock:
        """The block."""
        keys = self.query_lens if self.key_lens is None else self.key_lens
        return AttentionBlock(self.query_lens, keys, self.key_lens is None, self.width**-0.5)

    @property
    def flop(self) -> float:
        """Floating-point operations of the forward pass; a backward pass counts 2.5 times as many."""
        pairs = sum(q * k for q, k in zip(self.block.query_lens, self.block.key_lens, strict=True))
        return 4.0 * pairs * self.heads * self.width * (0.5 if self.block.causal else 1.0)

    def inputs(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Return query, key, value and the gradient of the output, random."""
        generator = torch.Generator(device).manual_seed(0)
        rows = sum(self.block.query_lens), sum(self.block.key_lens)
        shapes = ((rows[0], self.heads), (rows[1], self.groups), (rows[1], self.groups), (rows[0], self.heads))
        return [torch.randn(*s, self.width, generator=generator, device=device, dtype=dtype) for s in shapes]


MIXED = (12000, 7000, 5000, 3333, 2667, 2000, 1000, 1000)
CASES = (
    Case("one document of 32,768", (32768,)),
    Case("one document of 33,375", (33375,)),
    Case("8 documents of 4,096", (4096,) * 8),
    Case("a mixed pack of 34,000", MIXED),
    Case("a ring's block, 16,384 x 16,384", (16384,), (16384,)),
)
SMALL_CASES = (
    Case("one document of 509", (509,), heads=4, groups=2, width=64),
    Case("a mixed pack of 600", (300, 200, 50, 50), heads=4, groups=2, width=64),
    Case("a ring's block, 256 x 256", (256,), (256,), heads=4, groups=2, width=64),
)
LENGTHS = (512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
"""Documents of one length, dense one by one beside all in one launch: where the crossover is."""
TILES = 132
"""Tiles of the tower's case, [1,025, tiles, 16, 64]."""


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; see `--help` for the arguments."""
    parser = argparse.ArgumentParser(prog="python tools/benchmark.py attention_kernels", description=DESCRIPTION)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--type", choices=TYPES, help="of the tensors (default: bf16 on CUDA, fp32 on the CPU)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: %(default)s)")
    parser.add_argument(
        "--crossover", action="store_true", help="also documents of growing length, dense and in one launch"
    )
    arguments = parser.parse_args(argv)
    device = Device.choose(arguments.device).torch_device
    dtype = TYPES[arguments.type or ("bf16" if device.type == "cuda" else "fp32")]
    cases = CASES if device.type == "cuda" else SMALL_CASES
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "type": str(dtype).removeprefix("torch."),
        "kernels": [row for case in cases for row in table(case, device, dtype, arguments.repeats)],
        "tiles": tiles(device, dtype, arguments.repeats),
        "ms": "median of the calls after the first; first call: with the kernel's plan or compilation",
        "error": "largest difference of output and gradients from plain attention in float32, over the largest entry",
    }
    if arguments.crossover and device.type == "cuda" and dtype in HALVES:
        found["crossover"] = crossover(device, dtype, arguments.repeats)
    return found


def table(case: Case, device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Measure every kernel of this device that takes a case; one row each."""
    exact: list[Tensor] | None = None
    rows: list[dict[str, Any]] = []
    for name, kernel in candidates(device, dtype, case.width, case.heads // case.groups):
        if device.type == "cuda" and dtype in HALVES and isinstance(kernel, Chunked):
            continue  # plain arithmetic, a second a case
        if exact is None:
            exact = _results(Chunked(), [tensor.float() for tensor in case.inputs(device, dtype)], case.block)
        rows.append({"case": case.name, "kernel": name, **measured(kernel, case, device, dtype, repeats, exact)})
    return rows


def measured(
    kernel: BlockKernel,
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    exact: Sequence[Tensor] | None = None,
) -> dict[str, Any]:
    """Time a kernel on a case.

    Args:
        kernel: the kernel.
        case: the block.
        device: where.
        dtype: of the tensors.
        repeats: calls timed, forward and backward.
        exact: output and gradients to hold it against.

    Returns:
        `forward ms`, `backward ms`, `forward TFLOP/s`, `backward TFLOP/s`, `first call ms`, and `error` with `exact`.
    """
    query, key, value, outgoing = case.inputs(device, dtype)
    block, kept = case.block, list[tuple[Tensor, Tensor]]()

    def forward() -> None:
        kept[:] = [kernel.forward(query, key, value, block)]

    def backward() -> None:
        kernel.backward(outgoing, query, key, value, *kept[0], block)

    first = _seconds(forward, device) + _seconds(backward, device)
    seconds = [_median(call, device, repeats) for call in (forward, backward)]
    row: dict[str, Any] = {}
    for name, taken, flop in zip(("forward", "backward"), seconds, (case.flop, 2.5 * case.flop), strict=True):
        row |= {f"{name} ms": round(1e3 * taken, 3), f"{name} TFLOP/s": _digits(flop / taken / 1e12)}
    row["first call ms"] = round(1e3 * first, 1)
    if exact is not None:
        row["error"] = _digits(_difference(_results(kernel, [query, key, value, outgoing], block), exact))
    return row


def tiles(device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Time the tower's attention with every setting that can be used here."""
    shape = (1025, TILES, 16, 64) if device.type == "cuda" else (65, 4, 4, 64)
    leaves = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
    outgoing = torch.randn(shape, device=device, dtype=dtype)
    flop, rows = 4.0 * shape[0] ** 2 * shape[1] * shape[2] * shape[3], list[dict[str, Any]]()
    for backend in usable(device):
        if backend in ("reference", "flash_attn"):  # quadratic in memory; the same kernels as flash
            continue
        kept = list[Tensor]()

        def forward(backend: str = backend, kept: list[Tensor] = kept) -> None:
            kept[:] = [batched_attention(*leaves, shape[3] ** -0.5, backend)]  # type: ignore[call-arg]

        def backward(kept: list[Tensor] = kept) -> None:
            torch.autograd.grad(kept[0], leaves, outgoing, retain_graph=True)

        first = _seconds(forward, device) + _seconds(backward, device)
        row: dict[str, Any] = {"attention_backend": backend, "tiles": shape[1]}
        for name, call, work in (("forward", forward, flop), ("backward", backward, 2.5 * flop)):
            taken = _median(call, device, repeats)
            row |= {f"{name} ms": round(1e3 * taken, 3), f"{name} TFLOP/s": _digits(work / taken / 1e12)}
        rows.append({**row, "first call ms": round(1e3 * first, 1)})
    return rows


def crossover(device: torch.device, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Time documents of growing length by cuDNN, one call each, and all in one launch of PyTorch's flash.

    Forward and backward together. Lengths are a little below the ones cuDNN is given: each document is lengthened, as
    in a pack.
    """
    rows: list[dict[str, Any]] = []
    if probed(Cudnn(), device, dtype, 128, 2, False) is not None:
        return rows
    for length in LENGTHS:
        count = max(2, 32768 // length)
        lens = tuple(length - 1 - number % 2 for number in range(count))  # no two neighbours alike
        case = Case(f"{count} documents of {length}", lens)
        one_by_one = Mixed(Cudnn(), TorchFlash(), Rule(causal=0.0, block=0.0))
        row: dict[str, Any] = {"tokens of a document": length, "documents": count}
        for name, kernel in (("dense", one_by_one), ("one launch", TorchFlash())):
            found = measured(kernel, case, device, dtype, repeats)
            row[f"{name} ms"] = round(found["forward ms"] + found["backward ms"], 3)
        rows.append({**row, "dense / one launch": round(row["dense ms"] / row["one launch ms"], 3)})
    return rows


def _results(kernel: BlockKernel, inputs: Sequence[Tensor], block: AttentionBlock) -> list[Tensor]:
    query, key, value, outgoing = inputs
    output, lse = kernel.forward(query, key, value, block)
    return [output, *kernel.backward(outgoing, query, key, value, output, lse, block)]


def _difference(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = zip(ours, exact, strict=True)
    return max(((a.float() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def _digits(number: float) -> float:
    return float(f"{number:.3g}")


def _median(call: Callable[[], None], device: torch.device, repeats: int) -> float:
    return statistics.median(_seconds(call, device) for _ in range(repeats))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call; on CUDA by events around it, with the device idle before."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3
