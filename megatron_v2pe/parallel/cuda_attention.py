"""Block attention by PyTorch's own flash operator on CUDA: all documents of a block in one launch.

It is FlashAttention-2 with cumulative lengths. Written against the signatures of torch 2.11 and 2.13.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from megatron_v2pe.parallel.block_attention import Block, Gradients
from megatron_v2pe.parallel.borders import borders


class TorchFlash:
    """PyTorch's own flash operator."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *borders(block, query.device), 0.0, block.causal, False, scale=block.scale
        )
        return output, lse.t()

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            output.contiguous(),
            lse.t().contiguous(),
            *borders(block, query.device),
            0.0,
            block.causal,
            *_no_dropout(query.device),
            scale=block.scale,
        )


@lru_cache(maxsize=16)
def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Seed and offset of a dropout that is not there."""
    state = torch.zeros(2, dtype=torch.uint64, device=device)
    return state, state.new_empty(0)
