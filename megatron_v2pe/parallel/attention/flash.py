"""Flash attention on CUDA: all documents of a block in one launch, by PyTorch's operator or a flash-attn package.

PyTorch's operator is FlashAttention-2 with cumulative lengths; the calls are written against the signatures of torch
2.11 and 2.13. The three packages are of one project and have three signatures: `flash_attn` (2, Ampere and later),
`flash_attn_interface` (3, built from its `hopper` folder) and `flash_attn.cute` (4, compiled at first use). They are
called through their inner functions, which take and return the log-sum-exp. Written against the sources of 2.7, of 3
before and after its arguments got defaults, and of 4 of early 2026; this project has run none of the three, for want of
a machine that has them. They are tested before they are used (`kernel_choice.probed`).
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel, Gradients, cumulative_lengths

_MODULES = {
    2: ("flash_attn.flash_attn_interface",),
    3: ("flash_attn_interface", "flash_attn_3.flash_attn_interface"),
    4: ("flash_attn.cute.interface",),
}
"""Where each generation's functions are, first found first."""


@cache
def package(generation: int) -> Any | None:
    """Return the module of a generation of flash-attn, None where it cannot be imported."""
    for name in _MODULES[generation]:
        try:
            return import_module(name)
        except (ImportError, OSError, RuntimeError, AttributeError):  # absent, or built for another PyTorch
            continue
    return None


def installed(major: int) -> list[int]:
    """Return the generations that are installed and made for a card, newest fitting first.

    Args:
        major: first number of the card's compute capability: 8 Ampere, 9 Hopper, 10 to 12 Blackwell.
    """
    fitting = {8: (2,), 9: (3, 2), 10: (4, 2), 11: (4, 2), 12: (2,)}.get(major, ())
    return [generation for generation in fitting if package(generation) is not None]


def flash_attn(generation: int) -> BlockKernel:
    """Return the kernel of an installed generation."""
    return {2: FlashAttn2, 3: FlashAttn3, 4: FlashAttn4}[generation]()


class TorchFlash:
    """PyTorch's own flash operator."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *cumulative_lengths(block, query.device), 0.0, block.causal, False, scale=block.scale
        )
        return output, lse.t()

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            output.contiguous(),
            lse.t().contiguous(),
            *cumulative_lengths(block, query.device),
            0.0,
            block.causal,
            *_no_dropout(query.device),
            scale=block.scale,
        )


@lru_cache(maxsize=16)
def _no_dropout(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the seed and the offset of a dropout that is not there."""
    state = torch.zeros(2, dtype=torch.uint64, device=device)
    return state, state.new_empty(0)


class FlashAttn2:
    """The kernels of the package flash-attn 2."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = _needed(2)._flash_attn_varlen_forward(
            query, key, value, *cumulative_lengths(block, query.device), 0.0, block.scale, causal=block.causal
        )
        return output, lse.t()

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        _needed(2)._flash_attn_varlen_backward(
            gradient.contiguous(),
            query,
            key,
            value,
            output.contiguous(),
            lse.t().contiguous(),
            *found,
            *cumulative_lengths(block, query.device),
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


class FlashAttn3:
    """The kernels of the package flash-attn 3.

    Arguments go by place: their names changed, the order of the first 25 and 17 did not."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        queries, keys, longest_query, longest_key = cumulative_lengths(block, query.device)
        output, lse, *_ = _needed(3)._flash_attn_forward(
            query,
            key,
            value,
            *[None] * 4,  # new keys and values of a cache, a second query, where to write
            queries,
            keys,
            *[None] * 3,  # borders of new keys, used lengths
            longest_query,
            longest_key,
            *[None] * 9,  # pages, rotary embedding, scales of 8-bit numbers
            block.scale,
            block.causal,
        )
        return output, lse.t()

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        queries, keys, longest_query, longest_key = cumulative_lengths(block, query.device)
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        _needed(3)._flash_attn_backward(
            gradient.contiguous(),
            query,
            key,
            value,
            output.contiguous(),
            lse.t().contiguous(),
            queries,
            keys,
            None,  # used lengths
            None,
            longest_query,
            longest_key,
            *found,
            block.scale,
            block.causal,
        )
        return found


class FlashAttn4:
    """The kernels of the package flash-attn 4. It compiles its kernels at the first call."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, lse, *_ = _needed(4)._flash_attn_fwd(
            query,
            key,
            value,
            softmax_scale=block.scale,
            causal=block.causal,
            return_lse=True,
            **_named_lengths(block, query),
        )
        return output, lse.t()

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        block: AttentionBlock,
    ) -> Gradients:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        found = _needed(4)._flash_attn_bwd(
            query,
            key,
            value,
            output.contiguous(),
            gradient.contiguous(),
            lse.t().contiguous(),
            softmax_scale=block.scale,
            causal=block.causal,
            **_named_lengths(block, query),
        )
        return found[0], found[1], found[2]


def _named_lengths(block: AttentionBlock, query: Tensor) -> dict[str, Any]:
    queries, keys, longest_query, longest_key = cumulative_lengths(block, query.device)
    return {
        "cu_seqlens_q": queries,
        "cu_seqlens_k": keys,
        "max_seqlen_q": longest_query,
        "max_seqlen_k": longest_key,
    }


def _needed(generation: int) -> Any:
    found = package(generation)
    assert found is not None, f"flash-attn {generation} is not installed"
    return found
