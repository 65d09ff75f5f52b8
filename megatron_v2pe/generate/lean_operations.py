"""The arithmetic of a layer for a few tokens, in as few calls as PyTorch allows.

Each function equals the plain operation in exact arithmetic; which form is used depends on shapes and device alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_v2pe.kernels.decode_attention import rotate as rotate  # shared with the step that decodes
from megatron_v2pe.models.norms import RMSNorm

Norm = Callable[[Tensor], Tensor]
_FEW = range(2, 17)
"""Rows for which a product on CPU is faster the other way round; measured for 1 to 16."""


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`states @ weight.T + bias` for [T, in] and [out, in].

    For 2 to 16 rows and at least as many outputs as inputs the CPU library is up to twice as fast at the transposed
    product (16384 x 2048, 8 rows, one core: 26 ms in place of 40 ms).
    """
    if states.shape[0] in _FEW and weight.shape[0] >= weight.shape[1] and not states.is_cuda:
        product = torch.mm(weight, states.t()).t().contiguous()
        return product if bias is None else product.add_(bias)
    return F.linear(states, weight, bias)


def lean_norm(norm: nn.Module) -> Norm:
    """Return a norm as a function of [T, size]; RMSNorm in float32 and float64 on CPU with half the calls.

    `x / rms(x) = x sqrt(size) / hypot(|x|, sqrt(eps size))`. Takes a copy of the weight.
    """
    if type(norm) is not RMSNorm or norm.weight.dtype not in (torch.float32, torch.float64) or norm.weight.is_cuda:
        return norm
    size = norm.weight.numel()
    scaled = norm.weight.detach() * size**0.5
    floor = torch.tensor((norm.eps * size) ** 0.5, dtype=scaled.dtype)

    def apply(states: Tensor) -> Tensor:
        return torch.div(states, torch.hypot(torch.linalg.vector_norm(states, dim=-1, keepdim=True), floor)).mul_(
            scaled
        )

    return apply


def rotation(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of `rotate` from cosines and sines [T, d // 2]: float32 [T, 1, 1, d] each."""
    return torch.cat([cos, cos], dim=-1)[:, None, None], torch.cat([-sin, sin], dim=-1)[:, None, None]
