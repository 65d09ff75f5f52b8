"""A residual addition with the RMSNorm that follows, and their gradient: a program works on whole rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16


@triton.jit
def _forward(hidden, update, weight, total, normed, inverse, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    value = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + place, rounded, mask=inside)
    value = rounded.to(tl.float32)  # the norm of what others will read
    scale = tl.rsqrt(tl.sum(value * value) / width + eps)
    tl.store(inverse + row, scale)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + place, value * scale * factor, mask=inside)


@triton.jit
def _backward(
    total_gradient, gradient, total, weight, inverse, result, sums, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    collected = tl.zeros((BLOCK,), tl.float32)
    for row in range(first, tl.minimum(first + ROWS, rows)):
        place = row * width + column
        scale = tl.load(inverse + row)
        unit = tl.load(total + place, mask=inside, other=0.0).to(tl.float32) * scale
        given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        collected += given * unit
        given *= factor
        change = (given - unit * (tl.sum(given * unit) / width)) * scale
        change += tl.load(total_gradient + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(result + place, change, mask=inside)
    tl.store(sums + tl.program_id(0) * width + column, collected, mask=inside)


def forward(hidden: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum, norm and reciprocal root mean squares [n] of contiguous [n, width]."""
    rows, width = hidden.shape
    total, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    inverse = hidden.new_empty(rows, dtype=torch.float32)
    if rows:
        block = triton.next_power_of_2(width)
        warps = min(max(block // 512, 4), 16)
        _forward[(rows,)](hidden, update, weight, total, normed, inverse, width, eps, BLOCK=block, num_warps=warps)
    return total, normed, inverse


def backward(
    total_gradient: Tensor, gradient: Tensor, total: Tensor, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the sum's terms [n, width], and of the weight in float32 [width]."""
    rows, width = total.shape
    result = torch.empty_like(total)
    groups = triton.cdiv(rows, _ROWS)
    sums = total.new_empty(groups, width, dtype=torch.float32)
    if rows:
        block = triton.next_power_of_2(width)
        warps = min(max(block // 512, 4), 16)
        tensors = (total_gradient, gradient, total, weight, inverse, result, sums)
        _backward[(groups,)](*tensors, rows, width, ROWS=_ROWS, BLOCK=block, num_warps=warps)
    return result, sums.sum(0)
