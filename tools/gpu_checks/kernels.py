"""Part (f): attention kernels and fused operations: time, rate, and error beside the plain form."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.outcome import Outcome
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.device.device import Device
from megatron_v2pe.kernels import choice
from megatron_v2pe.kernels.decode_attention import decode_attention
from megatron_v2pe.kernels.gradients import add_product
from megatron_v2pe.kernels.norms import add_rms_norm
from megatron_v2pe.kernels.residual import scaled_residual
from megatron_v2pe.kernels.rotary import split_and_rotate, split_norm_and_rotate
from megatron_v2pe.kernels.swiglu import swiglu
from megatron_v2pe.kernels.tiles import normalise_tiles
from perf import attention_kernels

REPEATS = {"cuda": 5, "cpu": 1}
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 2e-5}
"""Largest difference of an operation's results and gradients from the plain form, over the largest entry: two roundings
of 2^-8; in float32 sums over rows in another order."""


def run(kind: str) -> Outcome:
    """Measure; on the CPU there is one form of everything, in small."""
    outcome, device = Outcome(), Device(kind)
    arguments = ["--device", kind, "--repeats", str(REPEATS[kind])]
    found = attention_kernels.run([*arguments, *(["--crossover"] if kind == "cuda" else [])])
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    allowed = attention_kernels.TOLERANCE[dtype]
    for row in found["kernels"]:
        what = f"{row.pop('case')}: {row.pop('kernel')}"
        outcome.add(what, **row)
        outcome.must(row["error"] < allowed, f"{what}: error {row['error']}, allowed {allowed}")
    for row in found["tiles"]:
        outcome.add(f"tower, {row.pop('tiles')} tiles: {row.pop('attention_backend')}", **row)
    for row in found.get("crossover", ()):
        outcome.add(f"{row.pop('documents')} documents of {row.pop('tokens of a document')}", **row)
    for operation in _operations(device, dtype):
        _compare(outcome, operation, device, dtype)
    if kind == "cpu":
        outcome.remarks.append("on the CPU every fused operation runs in its plain form alone, on small tensors")
    return outcome


@dataclass(frozen=True)
class _Operation:
    name: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    """Those that ask for a gradient get one."""
    moved: int
    """Bytes that must be read and written at least, forward."""
    exact: Callable[..., Any] | None = None
    """What it is held against, where that is not its own plain form."""


def _operations(device: Device, dtype: torch.dtype) -> list[_Operation]:
    """The operations in the shapes of a step of 33K tokens and 130 tiles; of one of 64 tokens on the CPU."""
    there, size = device.torch_device, dtype.itemsize
    rows, tiles = (33375, 128) if device.kind == "cuda" else (64, 2)
    generator = torch.Generator(there).manual_seed(0)

    def made(*shape: int, learn: bool = True, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=there, dtype=kind).requires_grad_(learn)

    mean, std = NORMALISATION["imagenet"]
    joint, angles = made(rows, 8, 4, 128), torch.rand(rows, 64, generator=generator, device=there)
    pixels = torch.randint(0, 256, (tiles, 448, 448, 3), dtype=torch.uint8, device=there, generator=generator)
    keep = torch.ones(tiles, device=there, dtype=dtype)
    tower = made(1025, tiles, 1024), made(1025, tiles, 1024), made(1024), made(1024), keep
    return [
        _Operation("SwiGLU", swiglu, (made(rows, 2 * 8192),), 3 * rows * 8192 * size),
        _Operation(
            "addition and RMSNorm",
            lambda hidden, update, weight: add_rms_norm(hidden, update, weight, 1e-5),
            (made(rows, 2048), made(rows, 2048), made(2048)),
            4 * rows * 2048 * size,
        ),
        _Operation("split and rotary", split_and_rotate, (joint, angles.cos(), angles.sin()), 2 * joint.nbytes),
        _Operation(
            "split, norms of heads and rotary",
            lambda joint, query, key, cos, sin: split_norm_and_rotate(joint, query, key, 1e-6, cos, sin),
            (joint, made(128), made(128), angles.cos(), angles.sin()),
            2 * joint.nbytes,
        ),
        _Operation("tower residual", scaled_residual, tower, 3 * tower[0].nbytes),
        _Operation(
            "tile normalisation",
            lambda tiles: normalise_tiles(tiles, mean, std, dtype),
            (pixels,),
            pixels.numel() * (1 + size),
        ),
        _Operation("exact GELU", F.gelu, (made(tiles * 1025, 4096),), 2 * tiles * 1025 * 4096 * size),
        _weight_gradient(rows, made),
        _decode(device, made),
    ]


def _weight_gradient(rows: int, made: Callable[..., Tensor]) -> _Operation:
    gradient, states = made(rows, 2048, learn=False), made(rows, 1024, learn=False)

    def accumulated(gradient: Tensor, states: Tensor) -> Tensor:
        target = torch.ones(2048, 1024, device=gradient.device, dtype=torch.float32)
        add_product(target, gradient, states)
        return target

    def exact(gradient: Tensor, states: Tensor) -> Tensor:
        return 1.0 + gradient.float().t() @ states.float()

    moved = gradient.nbytes + states.nbytes
    return _Operation("weight gradient into fp32", accumulated, (gradient, states), moved, exact)


def _decode(device: Device, made: Callable[..., Tensor]) -> _Operation:
    room = 131072 if device.kind == "cuda" else 512
    keys, values = (made(room, 8, 128, learn=False) for _ in range(2))
    query = made(1, 8, 2, 128, learn=False)
    starts, lengths = (torch.tensor([number], device=device.torch_device) for number in (0, room - 100))

    def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return decode_attention(query, keys, values, starts, lengths, 128**-0.5)[0]

    return _Operation(f"decode over {room} keys", attend, (query, keys, values), 2 * keys.nbytes)


def _compare(outcome: Outcome, operation: _Operation, device: Device, dtype: torch.dtype) -> None:
    """Time an operation as it is chosen here and in its plain form, and compare both."""
    plain = operation if operation.exact is None else replace(operation, call=operation.exact)
    with choice.forced("plain"):
        exact, plain_seconds = _results(plain), _seconds(plain, device)
    ours, seconds = _results(operation), _seconds(operation, device)
    error = max(_difference(a, b) for a, b in zip(ours, exact, strict=True))
    rate = operation.moved / seconds / 1e9
    outcome.add(
        operation.name,
        **{"forward ms": 1e3 * seconds, "GB/s": rate, "plain ms": 1e3 * plain_seconds, "error": error},
    )
    outcome.must(error <= TOLERANCE[dtype], f"{operation.name}: error {error:.1e}, allowed {TOLERANCE[dtype]}")


def _results(operation: _Operation) -> list[Tensor]:
    """Everything it returns, and the gradients of everything that asks for one."""
    found = operation.call(*operation.inputs)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    leaves = [tensor for tensor in operation.inputs if tensor.requires_grad]
    if not leaves:
        return outputs
    outgoing = [torch.ones_like(output) for output in outputs]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(outputs, leaves, outgoing))


def _difference(ours: Tensor, exact: Tensor) -> float:
    wide = exact.double() if exact.numel() < 1e6 else exact.float()
    largest = wide.abs().max().clamp(min=1e-6)
    return ((ours.to(wide.dtype) - wide).abs().max() / largest).item()


@torch.no_grad()
def _seconds(operation: _Operation, device: Device) -> float:
    """Seconds of one forward call with the device idle before: median after a first that compiles."""
    taken: list[float] = []
    for _ in range(1 + REPEATS[device.kind]):
        device.synchronize()
        began = time.perf_counter()
        operation.call(*operation.inputs)
        device.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
