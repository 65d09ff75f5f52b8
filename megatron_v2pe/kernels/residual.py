"""The tower's residual addition: bias, layer scale, drop path and addition in one pass, and their gradients in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton


def scaled_residual(
    residual: Tensor, update: Tensor, bias: Tensor | None, scale: Tensor, keep: Tensor | None
) -> Tensor:
    """Return `residual + (update + bias) * scale * keep`.

    On CUDA in float32, rounded once. What is kept for the backward pass is the update alone.

    Args:
        residual: [tokens, tiles, width].
        update: as `residual`.
        bias: [width], or None.
        scale: [width].
        keep: [tiles], no gradient; None for ones.

    Returns:
        [tokens, tiles, width].
    """
    return _ScaledResidual.apply(residual, update, bias, scale, keep)


class _ScaledResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, update: Tensor, bias: Tensor | None, scale: Tensor, keep: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(update, bias, scale, keep)
        if use_triton(residual, update, bias, scale, keep):
            from megatron_v2pe.kernels.gpu import residual as gpu

            return gpu.forward(residual.contiguous(), update.contiguous(), bias, scale, keep)
        factor = scale if keep is None else scale * keep.unsqueeze(1)  # [width], or [tiles, width]
        return torch.addcmul(residual, update if bias is None else update + bias, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        update, bias, scale, keep = ctx.saved_tensors
        update_gradient, plain, weighted = _gradients(gradient, update, scale, keep)
        scale_gradient, bias_gradient = weighted, None
        if bias is not None:
            scale_gradient = weighted + plain * bias
            bias_gradient = (plain * scale).to(bias.dtype)
        return gradient, update_gradient, bias_gradient, scale_gradient.to(scale.dtype), None


def _gradients(gradient: Tensor, update: Tensor, scale: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the update, and the column sums of `gradient * keep` and of `gradient * keep * update`."""
    if use_triton(gradient, update, scale, keep):
        from megatron_v2pe.kernels.gpu import residual as gpu

        return gpu.backward(gradient.contiguous(), update.contiguous(), scale, keep)
    plain, weighted = gradient.sum(0), (gradient * update).sum(0)  # [tiles, width]
    if keep is None:
        return gradient * scale, plain.sum(0), weighted.sum(0)
    return gradient * (scale * keep.unsqueeze(1)), keep @ plain, keep @ weighted
