"""Gradient of the exact GELU with the column sums a bias needs: a program works on a piece of several rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _AT_ONCE, _BLOCK = 64, 4, 512
"""Rows of a program, rows it has in flight, and columns."""


@triton.jit
def _backward(
    gradient, hidden, result, hidden_gradient, sums, rows, width,
    ROWS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for step in range(0, ROWS, AT_ONCE):
        row = first + step + tl.arange(0, AT_ONCE)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        value = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        share = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))  # of the normal distribution below the value
        density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
        change = given * (share + value * density)
        tl.store(result + place, value * share, mask=inside)
        tl.store(hidden_gradient + place, change, mask=inside)
        total += change
    tl.store(sums + tl.program_id(0) * width + column, tl.sum(total, axis=0), mask=column < width)


def backward(gradient: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.gelu.gelu_backward`; both are contiguous [n, f]."""
    rows, width = hidden.shape
    result, hidden_gradient = torch.empty_like(hidden), torch.empty_like(hidden)
    groups = triton.cdiv(rows, _ROWS)
    sums = hidden.new_empty(groups, width, dtype=torch.float32)
    if hidden.numel():
        grid = (groups, triton.cdiv(width, _BLOCK))
        tensors = (gradient, hidden, result, hidden_gradient, sums)
        _backward[grid](*tensors, rows, width, ROWS=_ROWS, AT_ONCE=_AT_ONCE, BLOCK=_BLOCK)
    return result, hidden_gradient, sums.sum(0)
