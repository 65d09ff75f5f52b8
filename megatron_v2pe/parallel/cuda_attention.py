"""Block attention on CUDA: flash-attn where it is installed, PyTorch's own flash operator otherwise.

All documents of a block in one launch. Written against the signatures of flash-attn 2.7 and torch 2.13; not run where
no GPU is at hand (`tests/unit/parallel/test_block_attention_gpu.py` runs it where there is one).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from megatron_v2pe.parallel.block_attention import Block, BlockKernel, Gradients

try:  # optional
    from flash_attn import flash_attn_interface
except ImportError:
    flash_attn_interface = None


class FlashAttn:
    """The flash-attn package."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        assert flash_attn_interface is not None
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = flash_attn_interface._flash_attn_varlen_forward(
            query, key, value, *_borders(block, query.device), 0.0, block.scale, causal=block.causal
        )
        return output, lse.t()

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        assert flash_attn_interface is not None
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        flash_attn_interface._flash_attn_varlen_backward(
            gradient.contiguous(),
            query,
            key,
            value,
            output.contiguous(),
            lse.t().contiguous(),
            *found,
            *_borders(block, query.device),
            0.0,
            block.scale,
            block.causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return found


class TorchFlash:
    """PyTorch's own flash operator."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_borders(block, query.device), 0.0, block.causal, False, scale=block.scale
        )
        return output, lse.t()

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            output.contiguous(),
            lse.t().contiguous(),
            *_borders(block, query.device),
            0.0,
            block.causal,
            no_dropout,
            no_dropout.new_empty(0),
            scale=block.scale,
        )


def cuda_kernel() -> BlockKernel:
    """Return flash-attn's kernel where it is installed, PyTorch's otherwise."""
    return TorchFlash() if flash_attn_interface is None else FlashAttn()


@lru_cache(maxsize=256)
def _borders(block: Block, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Running sums (int32) of query and key lengths, and the longest of each; kept, as all layers ask for the same."""
    sums = (torch.tensor([0, *accumulate(lens)], dtype=torch.int32) for lens in (block.query_lens, block.key_lens))
    queries, keys = (tensor.to(device) for tensor in sums)
    return queries, keys, max(block.query_lens), max(block.key_lens)
