"""The tower's scaled residual addition and its gradients: forward on pieces of rows, backward on pieces of several."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _AT_ONCE, _BLOCK = 64, 4, 512
"""Rows of a program of the backward pass, rows it has in flight, and columns."""


@triton.jit
def _forward(
    residual, update, bias, scale, keep, result, tiles, width,
    HAS_BIAS: tl.constexpr, HAS_KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    value = tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_KEEP:
        value *= tl.load(keep + row % tiles).to(tl.float32)
    value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + place, value, mask=inside)


@triton.jit
def _backward(
    gradient, update, scale, keep, update_gradient, plain_sums, weighted_sums, rows, tiles, width,
    HAS_KEEP: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = column < width
    factor = tl.load(scale + column, mask=within, other=0.0).to(tl.float32)[None, :]
    plain = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    weighted = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for step in range(0, ROWS, AT_ONCE):
        row = first + step + tl.arange(0, AT_ONCE)
        inside = (row < rows)[:, None] & within[None, :]
        place = row[:, None] * width + column[None, :]
        given = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        if HAS_KEEP:
            given *= tl.load(keep + row % tiles).to(tl.float32)[:, None]
        tl.store(update_gradient + place, given * factor, mask=inside)
        plain += given
        weighted += given * tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
    place = tl.program_id(0) * width + column
    tl.store(plain_sums + place, tl.sum(plain, axis=0), mask=within)
    tl.store(weighted_sums + place, tl.sum(weighted, axis=0), mask=within)


def forward(residual: Tensor, update: Tensor, bias: Tensor | None, scale: Tensor, keep: Tensor | None) -> Tensor:
    """See `kernels.residual.scaled_residual`; residual and update are contiguous [tokens, tiles, width]."""
    tokens, tiles, width = residual.shape
    result = torch.empty_like(residual)
    if result.numel():
        _forward[(tokens * tiles, triton.cdiv(width, _BLOCK))](
            residual, update, scale if bias is None else bias, scale, scale if keep is None else keep, result, tiles,
            width, HAS_BIAS=bias is not None, HAS_KEEP=keep is not None, BLOCK=_BLOCK,
        )  # fmt: skip
    return result


def backward(gradient: Tensor, update: Tensor, scale: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the update, and the float32 column sums [width] of `g keep` and of `g keep update`."""
    tokens, tiles, width = gradient.shape
    rows = tokens * tiles
    groups = triton.cdiv(rows, _ROWS)
    update_gradient = torch.empty_like(gradient)
    sums = gradient.new_empty(2, groups, width, dtype=torch.float32)
    if rows:
        _backward[(groups, triton.cdiv(width, _BLOCK))](
            gradient, update, scale, scale if keep is None else keep, update_gradient, sums[0], sums[1], rows, tiles,
            width, HAS_KEEP=keep is not None, ROWS=_ROWS, AT_ONCE=_AT_ONCE, BLOCK=_BLOCK,
        )  # fmt: skip
    plain, weighted = sums.sum(1)
    return update_gradient, plain, weighted
