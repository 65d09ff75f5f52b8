"""A weight's gradient formed inside the buffer that collects it: one product, no temporary, no further addition."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def add_product(target: Tensor, gradient: Tensor, states: Tensor) -> None:
    """Add `gradient.T @ states` to the target, in the target's type.

    With equal types the product is formed in place. From bf16 or fp16 into float32 a CUDA product writes float32 where
    this PyTorch can (`addmm` with an `out_dtype`, tried once per card); elsewhere the product is rounded, then added.

    Args:
        target: [out, in], contiguous; changed.
        gradient: [n, out].
        states: [n, in].
    """
    if target.dtype == gradient.dtype == states.dtype:
        torch.addmm(target, gradient.t(), states, out=target)
    elif target.is_cuda and target.dtype == torch.float32 and _writes_float32(target.device, gradient.dtype):
        _add_wide(target, gradient, states)
    else:
        target.add_(gradient.t() @ states)


def _add_wide(target: Tensor, gradient: Tensor, states: Tensor) -> None:
    torch.ops.aten.addmm.dtype_out(target, gradient.t(), states, torch.float32, out=target)


@lru_cache(maxsize=16)
def _writes_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Try the product on a few numbers: releases before it existed, or that refuse a float32 target, say no."""
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    target = torch.full((16, 16), 0.5, device=device)
    try:
        _add_wide(target, ones, ones / 65536)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool((target == 0.5 + 16 / 65536).all())
