"""RMSNorm of queries or keys over all heads together, whose statistics tensor-parallel ranks form in common.

InternViT-6B normalises the whole width of its queries, and that of its keys, before it is cut into heads. A rank holds
some of the heads, so that the mean of squares is a sum over ranks, and so is one term of the gradient:

    y = w x r,  r = (sum x^2 / n + eps)^(-1/2)        dx = r (w dy - x r^2 (sum w dy x) / n)

Both sums run over all heads of all ranks; n is the width of the checkpoint's heads. Heads that are padding have zeros
in x and in w: they add nothing to a sum, and neither they nor their weights have a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from megatron_v2pe.kernels.norms import rms_norm


class WholeWidthNorm(nn.Module):
    """RMSNorm over all heads of all tensor-parallel ranks, its weight divided among them as the heads are."""

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        width: int,
        tp_group: dist.ProcessGroup,
    ) -> None:
        """Create weight ones for this rank's heads.

        Args:
            config: of the layer; its heads, padding included, are a multiple of the ranks.
            hidden_size: width of one head.
            eps: added to the mean of squares.
            width: of all heads together, without those that are padding.
            tp_group: the tensor-parallel group.
        """
        super().__init__()
        self.eps, self.width, self.tp_group = eps, width, tp_group
        held = config.num_attention_heads // tp_group.size() * hidden_size
        self.weight = nn.Parameter(torch.ones(held, dtype=config.params_dtype))
        setattr(self.weight, "tensor_model_parallel", tp_group.size() > 1)  # noqa: B010 (a tensor attribute)

    def forward(self, states: Tensor) -> Tensor:
        """Normalise [tokens, tiles, this rank's heads, head size]."""
        flat = states.flatten(-2)
        if self.tp_group.size() == 1:
            return rms_norm(flat, self.weight, self.eps).view(states.shape)
        return _SplitRMSNorm.apply(flat, self.weight, self.eps, self.width, self.tp_group).view(states.shape)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[tuple[int, int, int], ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Return what a distributed checkpoint stores: the weight of all heads, each rank's part of it."""
        groups = {"tp_group": self.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0}, sharded_offsets, **groups)


class _SplitRMSNorm(torch.autograd.Function):
    """RMSNorm of rows [..., width on this rank], statistics in float32 or wider over the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float, width: int, group: dist.ProcessGroup) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        squares = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
        dist.all_reduce(squares, group=group)
        inverse = squares.div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        ctx.width, ctx.group = width, group
        return (wide * inverse * weight).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        states, weight, inverse = ctx.saved_tensors
        gradient, normed = gradient.to(inverse.dtype), states.to(inverse.dtype) * inverse
        weight_gradient = (gradient * normed).flatten(0, -2).sum(0)
        scaled = gradient * weight
        common = torch.linalg.vecdot(scaled, normed).unsqueeze(-1)
        dist.all_reduce(common, group=ctx.group)
        states_gradient = (scaled - normed * common.div_(ctx.width)) * inverse
        return states_gradient.to(states.dtype), weight_gradient.to(weight.dtype), None, None, None
