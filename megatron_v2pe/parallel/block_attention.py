"""Softmax attention of one block of queries over one block of keys, forward and backward, on any device.

A block gives its output and the logarithm of its softmax denominator. With both, blocks seen one after the other merge
into exact attention (`ring_attention.py`), and the backward pass of a block needs only the merged pair. Several kernels
stand behind one signature: PyTorch's CPU flash operator, flash-attn and PyTorch's CUDA flash operator
(`cuda_attention.py`), and a plain reference that the tests compare them with. Memory is linear in length everywhere but
in the reference. Grouped-query heads are never expanded by us.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """Which queries see which keys: those of document i the keys of document i, documents one behind the other."""

    query_lens: tuple[int, ...]
    """Queries of each document."""
    key_lens: tuple[int, ...]
    """Keys of each document."""
    causal: bool
    """Query t sees keys up to t only; needs equal lengths."""
    scale: float
    """Factor on the scores, usually `d ** -0.5`."""

    def __post_init__(self) -> None:
        """Check that a causal block is square."""
        assert len(self.query_lens) == len(self.key_lens), f"{len(self.query_lens)} and {len(self.key_lens)} documents"
        assert not self.causal or self.query_lens == self.key_lens, f"causal: {self.query_lens} and {self.key_lens}"


class BlockKernel(Protocol):
    """Attention of a block; tensors are [tokens, heads, d], keys and values [tokens, groups, d]."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Return the output [queries, heads, d] and its log-sum-exp [queries, heads], float32 or wider."""
        ...

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """Return the gradients of query, key and value.

        `gradient` is that of the final output; `output` and `lse` are final too, merged over every block these queries
        have seen.
        """
        ...


def choose_kernel(query: Tensor) -> BlockKernel:
    """Return the fastest kernel for these queries' device and type."""
    if not query.is_cuda:
        return CpuFlash()
    if query.dtype not in (torch.float16, torch.bfloat16):
        return Reference()  # flash kernels on CUDA take half precision only
    from megatron_v2pe.parallel.cuda_attention import cuda_kernel

    return cuda_kernel()


class CpuFlash:
    """PyTorch's CPU flash operator, document by document; it reads strided views and takes grouped heads."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        outputs: list[Tensor] = []
        sums: list[Tensor] = []
        for q, k, v in _documents(query, key, value, block):
            output, lse = operator(q, k, v, 0.0, block.causal, scale=block.scale)
            outputs.append(_tokens_first(output))
            sums.append(_tokens_first(lse))
        return _joined(outputs), _joined(sums)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        parts: list[tuple[Tensor, ...]] = []
        results = zip(*(tensor.split(block.query_lens) for tensor in (gradient, output, lse)), strict=True)
        for (q, k, v), result in zip(_documents(query, key, value, block), results, strict=True):
            outgoing, out, total = map(_heads_first, result)
            parts.append(operator(outgoing, q, k, v, out, total, 0.0, block.causal, scale=block.scale))
        query_gradient, key_gradient, value_gradient = (
            _joined([_tokens_first(tensor) for tensor in tensors]) for tensors in zip(*parts, strict=True)
        )
        return query_gradient, key_gradient, value_gradient


class Reference:
    """Softmax attention written out, quadratic in memory: what every kernel is compared with."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        scores, wide_value = self._scores(query, key, value, block)
        lse = scores.logsumexp(-1)
        output = torch.einsum("hqk,khd->qhd", (scores - lse.unsqueeze(-1)).exp(), wide_value)
        return output.to(query.dtype), lse.t()

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        scores, wide_value = self._scores(query, key, value, block)
        wide, groups, repeats = scores.dtype, key.shape[1], query.shape[1] // key.shape[1]
        gradient = gradient.to(wide)
        weights = (scores - lse.t().unsqueeze(-1)).exp()
        delta = (gradient * output.to(wide)).sum(-1).t().unsqueeze(-1)
        inner = weights * (torch.einsum("qhd,khd->hqk", gradient, wide_value) - delta) * block.scale
        wide_key = key.to(wide).repeat_interleave(repeats, dim=1)
        query_gradient = torch.einsum("hqk,khd->qhd", inner, wide_key)
        key_gradient = torch.einsum("hqk,qhd->khd", inner, query.to(wide)).unflatten(1, (groups, repeats)).sum(2)
        value_gradient = torch.einsum("hqk,qhd->khd", weights, gradient).unflatten(1, (groups, repeats)).sum(2)
        return query_gradient.to(query.dtype), key_gradient.to(key.dtype), value_gradient.to(value.dtype)

    def _scores(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Masked scores [heads, queries, keys] and values [keys, heads, d], in float32 or wider."""
        wide, repeats = torch.promote_types(query.dtype, torch.float32), query.shape[1] // key.shape[1]
        key, value = (tensor.to(wide).repeat_interleave(repeats, dim=1) for tensor in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query.to(wide), key) * block.scale
        documents = torch.arange(len(block.query_lens))
        of_query, of_key = (
            documents.repeat_interleave(torch.tensor(lens)).to(query.device)
            for lens in (block.query_lens, block.key_lens)
        )
        allowed = of_query[:, None] == of_key
        return scores.masked_fill(~(allowed.tril() if block.causal else allowed), -math.inf), value


def batched_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Bidirectional attention inside each element of a batch (the vision tower: one tile each).

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d].
        value: [s, b, groups, d].
        scale: factor on the scores.

    Returns:
        [s, b, heads, d].
    """
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    if query.device.type == "cpu":
        output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)[0]
    else:
        output = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return output.permute(2, 0, 1, 3)


def _documents(query: Tensor, key: Tensor, value: Tensor, block: Block) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views [1, heads, tokens, d] of each document."""
    # With another stride the CPU operator gives wrong numbers without a word.
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, "heads must be contiguous"
    splits = query.split(block.query_lens), key.split(block.key_lens), value.split(block.key_lens)
    return [(_heads_first(q), _heads_first(k), _heads_first(v)) for q, k, v in zip(*splits, strict=True)]


def _heads_first(tokens: Tensor) -> Tensor:
    return tokens.transpose(0, 1).unsqueeze(0)


def _tokens_first(heads: Tensor) -> Tensor:
    return heads.squeeze(0).transpose(0, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
