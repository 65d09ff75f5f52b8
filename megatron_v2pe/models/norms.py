"""LayerNorm and RMSNorm for any device, with and without sequence parallelism.

Megatron-Core's own fallback (no apex, no Transformer Engine) refuses RMSNorm under sequence parallelism. What it
takes is one attribute: weights marked `sequence_parallel` have their gradients summed over the tensor-parallel group.
"""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_v2pe.kernels.norms import add_rms_norm, rms_norm
from megatron_v2pe.models.transformer_config import LayerConfig

PARTIAL_GRADIENT = "gradient_is_partial"
"""Attribute of a parameter that tensor-parallel ranks hold whole, while each has a part of its gradient."""


class _Norm(nn.Module):
    """A normalisation over the last axis with a learned weight and, for LayerNorm, a bias."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype)) if bias else None
        for parameter in self.parameters():
            setattr(parameter, "sequence_parallel", config.sequence_parallel)  # noqa: B010 (a tensor attribute)


class LayerNorm(_Norm):
    """LayerNorm; statistics in float32 or wider."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        """Create weight ones and bias zeros of `hidden_size`."""
        super().__init__(config, hidden_size, eps, bias=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise [..., hidden_size]."""
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(_Norm):
    """RMSNorm; the mean of squares in float32 or wider."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        """Create weight ones of `hidden_size`."""
        super().__init__(config, hidden_size, eps, bias=False)

    @overload
    def forward(self, hidden: Tensor) -> Tensor: ...

    @overload
    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, hidden: Tensor, update: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise [..., hidden_size]; with an update, add it first and return the sum beside its norm."""
        if update is None:
            return rms_norm(hidden, self.weight, self.eps)
        return add_rms_norm(hidden, update, self.weight, self.eps)


class HeadNorm:
    """The norm of each head of queries or keys that a configuration asks for, as a layer spec's builder."""

    def __new__(cls, config: LayerConfig, hidden_size: int, eps: float = 1e-6) -> RMSNorm | IdentityOp:  # type: ignore[misc]
        """Build RMSNorm over the width of one head, `hidden_size`, where `config.head_norms` is true, else nothing.

        All tensor-parallel ranks hold its weight, and each sees the gradient of its own heads, all tokens of them; the
        mark has `train.ddp.finalize_gradients` sum them, with and without sequence parallelism.
        """
        if not config.head_norms:
            return IdentityOp()
        norm = RMSNorm(config, hidden_size, eps)
        setattr(norm.weight, "sequence_parallel", False)  # noqa: B010 (a tensor attribute)
        setattr(norm.weight, PARTIAL_GRADIENT, True)
        return norm


class Norm:
    """The norm a configuration names, as a layer spec's builder."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> _Norm:  # type: ignore[misc]
        """Build the norm `config.normalization` asks for."""
        kinds: dict[str, type[LayerNorm] | type[RMSNorm]] = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm}
        return kinds[config.normalization](config, hidden_size, eps)
