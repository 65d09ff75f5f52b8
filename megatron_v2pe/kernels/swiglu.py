"""SwiGLU on the joint projection of gate and straight part; nothing but the joint is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton


def swiglu(joint: Tensor) -> Tensor:
    """Return `silu(gate) * straight`.

    On CUDA in one pass, in float32, rounded once; its gradient in one more.

    Args:
        joint: [..., 2 f], the gate before the straight part.

    Returns:
        [..., f] in the type of `joint`.
    """
    return _Swiglu.apply(joint)


def swiglu_forward(joint: Tensor) -> Tensor:
    """Return what `swiglu` returns, for [n, 2 f] and outside of autograd."""
    if use_triton(joint):
        from megatron_v2pe.kernels.gpu import swiglu as gpu

        return gpu.forward(joint.contiguous())
    gate, straight = joint.chunk(2, dim=-1)
    return F.silu(gate).mul_(straight)


def swiglu_backward(gradient: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result once more and the gradient of the joint projection, from one reading of both.

    The product that follows needs the result for its weight's gradient; it need not have kept it.

    Args:
        gradient: [n, f], of the result.
        joint: [n, 2 f].

    Returns:
        The result [n, f], and [n, 2 f].
    """
    if use_triton(gradient, joint):
        from megatron_v2pe.kernels.gpu import swiglu as gpu

        return gpu.backward(gradient.contiguous(), joint.contiguous())
    gate, straight = joint.chunk(2, dim=-1)
    joint_gradient = torch.empty_like(joint, memory_format=torch.contiguous_format)
    gate_gradient, straight_gradient = joint_gradient.chunk(2, dim=-1)
    result = F.silu(gate)
    torch.mul(gradient, result, out=straight_gradient)
    torch.ops.aten.silu_backward.grad_input(gradient * straight, gate, grad_input=gate_gradient)
    return result.mul_(straight), joint_gradient


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor) -> Tensor:
        ctx.save_for_backward(joint)
        return swiglu_forward(joint.flatten(0, -2)).unflatten(0, joint.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (joint,) = ctx.saved_tensors
        return swiglu_backward(gradient.flatten(0, -2), joint.flatten(0, -2))[1].view(joint.shape)
