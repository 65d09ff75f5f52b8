"""Softmax attention of one block of queries over one block of keys, forward and backward, on any device.

A block gives its output and the logarithm of its softmax denominator. With both, blocks seen one after the other merge
into exact attention (`ring_attention.py`), and the backward pass of a block needs only the merged pair. Several kernels
stand behind one signature: PyTorch's CPU flash operator here; on CUDA cuDNN (`cudnn_attention.py`), PyTorch's flash
operator (`cuda_attention.py`), the flash-attn packages (`flash_attention.py`) and plain attention in chunks
(`chunked_attention.py`), among which `attention_backend.py` chooses; and a plain reference that the tests compare them
with. Memory is linear in length everywhere but in the reference. Grouped-query heads are never expanded by us.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

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


def choose_kernel(query: Tensor, groups: int | None = None, backend: str = "auto", merges: bool = False) -> BlockKernel:
    """Return the fastest kernel for these queries' device and type.

    Args:
        query: [queries, heads, d].
        groups: key-value heads; as many as query heads by default.
        backend: value of `parallel.attention_backend`.
        merges: blocks are merged, as in a ring: backward is given what was merged.

    Raises:
        ConfigError: a backend that cannot be used on CUDA here.
    """
    if not query.is_cuda:
        return Reference() if backend == "reference" else CpuFlash()
    from megatron_v2pe.parallel.attention_backend import cuda_kernel

    ratio = 1 if groups is None else query.shape[-2] // groups
    return cuda_kernel(query.device, query.dtype, query.shape[-1], ratio, backend, merges)


class CpuFlash:
    """PyTorch's CPU flash operator; it reads strided views and takes grouped heads.

    Long documents are attended one by one, short ones of the same length together: many of them are a batch, and a pack
    of a hundred chat turns is a handful of calls.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        batches = Batches(block)
        outputs: list[Tensor] = []
        sums: list[Tensor] = []
        for q, k, v in zip(batches.queries(query), batches.keys(key), batches.keys(value), strict=True):
            output, lse = operator(q, k, v, 0.0, block.causal, scale=block.scale)
            outputs.append(output)
            sums.append(lse)
        return batches.tokens(outputs), batches.tokens(sums)

    def backward(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, block: Block
    ) -> Gradients:
        """See `BlockKernel`."""
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        batches = Batches(block)
        inputs = (batches.queries(gradient), batches.queries(query), batches.keys(key), batches.keys(value))
        results = (batches.queries(output), batches.queries(lse))
        parts = [
            operator(*tensors, 0.0, block.causal, scale=block.scale) for tensors in zip(*inputs, *results, strict=True)
        ]
        query_gradient, key_gradient, value_gradient = (list(tensors) for tensors in zip(*parts, strict=True))
        return (
            batches.tokens(query_gradient),
            batches.tokens(key_gradient),
            batches.tokens(value_gradient),
        )


TOGETHER = 2048
"""Queries of the longest documents that are attended together: beyond, one fills the cores, and copying it costs."""


class Batches:
    """Which documents of a block are attended in one call, and how their tokens get there and back."""

    def __init__(self, block: Block) -> None:
        """Find documents of one length."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for document, (queries, keys) in enumerate(zip(block.query_lens, block.key_lens, strict=True)):
            alone = document if queries > TOGETHER else -1
            groups.setdefault((queries, keys, alone), []).append(document)
        self.groups = list(groups.values())
        self.block = block

    def queries(self, tokens: Tensor) -> list[Tensor]:
        """Return [documents, heads, tokens, d] of each group of queries, or [documents, heads, tokens]."""
        return self._gathered(tokens, self.block.query_lens)

    def keys(self, tokens: Tensor) -> list[Tensor]:
        """Return the same of keys or values."""
        return self._gathered(tokens, self.block.key_lens)

    def tokens(self, batches: list[Tensor]) -> Tensor:
        """Return what `queries` or `keys` took apart: [tokens, heads, d] or [tokens, heads]."""
        if len(batches) == 1:
            return batches[0].transpose(1, 2).flatten(0, 1)
        documents: list[Tensor] = [batches[0]] * sum(len(group) for group in self.groups)
        for group, batch in zip(self.groups, batches, strict=True):
            for number, document in zip(group, batch.transpose(1, 2), strict=True):
                documents[number] = document
        return torch.cat(documents)

    def _gathered(self, tokens: Tensor, lens: tuple[int, ...]) -> list[Tensor]:
        # With another stride the CPU operator gives wrong numbers without a word.
        assert tokens.dim() < 3 or tokens.stride(-1) == 1, "heads must be contiguous"
        if len(self.groups) == 1:  # all of one length: a view
            return [tokens.unflatten(0, (len(lens), lens[0])).transpose(1, 2)]
        documents = tokens.split(lens)
        parts = ([documents[number] for number in group] for group in self.groups)
        return [(part[0].unsqueeze(0) if len(part) == 1 else torch.stack(part)).transpose(1, 2) for part in parts]


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


def batched_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, backend: str = "auto") -> Tensor:
    """Bidirectional attention inside each element of a batch (the vision tower: one tile each).

    On CUDA PyTorch's operator runs the first kernel that takes the tensors: cuDNN's, which was measured to be the
    fastest for tiles (324 against 237 TFLOP/s forward, 303 against 185 backward), then flash, then the others.

    Args:
        query: [s, b, heads, d].
        key: [s, b, groups, d].
        value: [s, b, groups, d].
        scale: factor on the scores.
        backend: value of `parallel.attention_backend`.

    Returns:
        [s, b, heads, d].
    """
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    if query.device.type == "cpu":
        output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)[0]
    else:
        with _preferred(backend):
            output = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return output.permute(2, 0, 1, 3)


def _preferred(backend: str) -> AbstractContextManager[Any]:
    """PyTorch's attention kernels in the order in which they are tried; each looks by itself at what it takes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    plain, fused = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION]
    if backend in ("auto", "cudnn"):
        fused = [SDPBackend.CUDNN_ATTENTION, *fused]
    return sdpa_kernel([SDPBackend.MATH] if backend == "reference" else [*fused, *plain], set_priority=True)
