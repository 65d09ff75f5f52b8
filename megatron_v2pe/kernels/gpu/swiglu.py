"""SwiGLU and its gradient, one pass each: a program works on a piece of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _forward(joint, result, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = joint + row * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    straight = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + row * width + column, gate * tl.sigmoid(gate) * straight, mask=inside)


@triton.jit
def _backward(gradient, joint, result, joint_gradient, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = joint + row * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    straight = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    target = joint_gradient + row * 2 * width + column
    tl.store(result + row * width + column, silu * straight, mask=inside)
    tl.store(target, given * straight * (sigmoid + silu * (1.0 - sigmoid)), mask=inside)
    tl.store(target + width, given * silu, mask=inside)


def forward(joint: Tensor) -> Tensor:
    """See `kernels.swiglu.swiglu`; `joint` is contiguous [n, 2 f]."""
    rows, width = joint.shape[0], joint.shape[1] // 2
    result = joint.new_empty(rows, width)
    if result.numel():
        _forward[(rows, triton.cdiv(width, _BLOCK))](joint, result, width, BLOCK=_BLOCK)
    return result


def backward(gradient: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.swiglu.swiglu_backward`; both are contiguous."""
    rows, width = gradient.shape
    result, joint_gradient = torch.empty_like(gradient), torch.empty_like(joint)
    if result.numel():
        grid = (rows, triton.cdiv(width, _BLOCK))
        _backward[grid](gradient, joint, result, joint_gradient, width, BLOCK=_BLOCK)
    return result, joint_gradient
