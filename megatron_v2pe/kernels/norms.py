"""RMSNorm, and RMSNorm together with the residual addition before it.

PyTorch's `rms_norm` is one kernel each way on CUDA since 2.9 (`aten::_fused_rms_norm`) and stays. It cannot add: on
CUDA the addition, the norm and their gradients are one pass each here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton

_WIDEST = 16384
"""Wider rows do not fit the registers of one program."""


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise [..., width] by its root mean square and multiply by `weight` [width]; statistics in float32."""
    return F.rms_norm(hidden, weight.shape, weight, eps)


def add_rms_norm(hidden: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add an update to the residual stream and normalise the sum.

    Args:
        hidden: [..., width].
        update: as `hidden`.
        weight: [width].
        eps: added to the mean of squares.

    Returns:
        The sum and its norm, as `hidden` both. The norm is that of the sum as it is rounded.
    """
    if use_triton(hidden, update, weight) and hidden.dtype == update.dtype and hidden.shape[-1] <= _WIDEST:
        return _AddNorm.apply(hidden, update, weight, eps)
    total = hidden + update
    return total, rms_norm(total, weight, eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from megatron_v2pe.kernels.gpu import norms as gpu

        rows = hidden.contiguous().flatten(0, -2), update.contiguous().flatten(0, -2)
        total, normed, inverse = gpu.forward(*rows, weight, eps)
        ctx.save_for_backward(total, weight, inverse)
        return total.view(hidden.shape), normed.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, total_gradient: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        from megatron_v2pe.kernels.gpu import norms as gpu

        total, weight, inverse = ctx.saved_tensors
        given = total_gradient.contiguous().view(total.shape), gradient.contiguous().view(total.shape)
        result, weight_gradient = gpu.backward(*given, total, weight, inverse)
        result = result.view(gradient.shape)
        return result, result, weight_gradient.to(weight.dtype), None
