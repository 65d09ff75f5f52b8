"""Softmax attention of one block of queries over one block of keys, forward and backward: what a kernel must offer.

A block returns its output and the logarithm of its softmax denominator (log-sum-exp). With both, blocks seen one after
the other merge into exact attention (`ring.py`), and the backward pass of a block needs only the merged pair. Kernels
with this signature (`BlockKernel`):

| class | file | what it is |
|---|---|---|
| `CpuFlash` | here | PyTorch's flash operator for the CPU |
| `Reference` | here | softmax written out, quadratic in memory: tests compare the others with it |
| `TorchFlash`, `FlashAttn`, ... | `flash.py` | PyTorch's flash operator for CUDA, and the flash-attn packages |
| `Cudnn`, `Mixed` | `cudnn.py`, `mixed_kernels.py` | cuDNN for long documents, another kernel for the others |
| `Chunked` | `chunked.py` | softmax written out in chunks of queries: any type, linear in memory |

`kernel_choice.py` chooses among them. Key and value heads of a group are never repeated for its query heads, but in the
reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from megatron_v2pe.device.transfer import to_device

Gradients = tuple[Tensor, Tensor, Tensor]
"""Gradients of query, key and value."""
AttentionResult = tuple[Tensor, Tensor]
"""Output [S, heads, d] and log-sum-exp [S, heads]."""


@dataclass(frozen=True)
class AttentionBlock:
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """Return the output [queries, heads, d] and its log-sum-exp [queries, heads], float32 or wider."""
        ...

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
        """Return the gradients of query, key and value.

        `gradient` is that of the final output; `output` and `lse` are final too, merged over every block these queries
        have seen.
        """
        ...


@lru_cache(maxsize=256)
def cumulative_lengths(block: AttentionBlock, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Return where documents begin and end, as the kernels for documents of any lengths take it.

    The host does not wait for the device. What is returned is kept, as all layers ask for the same.

    Returns:
        Running sums of query and key lengths, int32 [documents + 1] each on the device; the longest of each.
    """
    sums = (torch.tensor([0, *accumulate(lens)], dtype=torch.int32) for lens in (block.query_lens, block.key_lens))
    queries, keys = (to_device(tensor, device) for tensor in sums)
    return queries, keys, max(block.query_lens), max(block.key_lens)


class CpuFlash:
    """PyTorch's CPU flash operator; it reads strided views and takes grouped heads.

    Long documents are attended one by one, short ones of the same length together: many of them are a batch, and a pack
    of a hundred chat turns is a handful of calls.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
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
"""Most queries of a document that is attended together with others: a longer one fills the cores alone."""


class Batches:
    """Which documents of a block are attended in one call, and how their tokens get there and back."""

    def __init__(self, block: AttentionBlock) -> None:
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
        """Return the same for keys or values."""
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        scores, wide_value = self._scores(query, key, value, block)
        lse = scores.logsumexp(-1)
        output = torch.einsum("hqk,khd->qhd", (scores - lse.unsqueeze(-1)).exp(), wide_value)
        return output.to(query.dtype), lse.t()

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

    def _scores(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """Return masked scores [heads, queries, keys] and values [keys, heads, d], in float32 or wider."""
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
