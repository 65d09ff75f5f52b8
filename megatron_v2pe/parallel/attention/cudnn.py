"""Dense block attention by cuDNN through PyTorch: documents of one length, or one that is lengthened.

On one H100 cuDNN's kernel runs at nearly twice the rate of PyTorch's FlashAttention-2 (figures at
`mixed_kernels.DENSE`), but it takes one dense batch a call. PyTorch builds a plan for every new shape and every new
stride, and each thread keeps its own: the backward thread, which recomputes a forward pass, builds its plan again. A
plan costs some 75 ms: so much longer took a call whose plan PyTorch did not keep. Packs bring documents
of new lengths again and again.
So a causal document is lengthened to one of a few lengths; what is added stands at the end, where no real query sees
it. A block that is not causal, one of a ring's, cannot be lengthened, for its added keys would be seen.
`mixed_kernels.py` decides which documents come here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from megatron_v2pe.parallel.attention.block import AttentionBlock, Gradients

STEPS_PER_OCTAVE = 32
"""Lengths between a power of two and the next. 32 cost 1.1% more tokens on average, 3.1% at most, twice that in work,
and leave 193 lengths from 2,048 to 131,072 tokens: 29 s of plans, forward and backward, in a run that meets them all.
16 would halve the plans and double the work that is lost: less in a run of some hundred steps, more in a longer one."""
SHORTEST = 128
"""The least length a document is given: one tile of the kernel."""
UNSEEN = 1e30
"""Log-sum-exp of added queries in backward: exp(score - 1e30) is 0, so they change no gradient of keys or values. It is
finite, as infinity minus infinity is not a number."""


def lengthened(tokens: int) -> int:
    """Return the length that a causal document of so many tokens is attended with: the next of few."""
    if tokens <= SHORTEST:
        return SHORTEST
    step = max(1 << (tokens.bit_length() - 1), SHORTEST) // STEPS_PER_OCTAVE
    return -(-tokens // step) * step


class Cudnn:
    """The kernel of cuDNN for documents of one length: a batch of them, or one that may be lengthened.

    Tensors may go on behind the block's only document; what follows is then taken for what is added, instead of a copy.
    It must be finite. Layouts are the same in every call, for PyTorch finds a plan of the backward pass by shape and
    strides of query, key and value alone, whatever strides output, gradient and log-sum-exp have this time.
    """

    _trailing_one = True
    """Log-sum-exps are [b, heads, s, 1], as since PyTorch 2.9, or [b, heads, s]; backward takes what forward gave."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        shape = DenseBatch.of(block)
        q, k, v = shape.queries(query), shape.keys(key), shape.keys(value)
        output, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, block.causal, False, scale=block.scale
        )
        Cudnn._trailing_one = lse.dim() == 4
        lse = lse.squeeze(3) if lse.dim() == 4 else lse
        assert lse.shape == q.shape[:3] and lse.dtype == torch.float32, (lse.shape, lse.dtype, q.shape)
        assert output.shape == q.shape, (output.shape, q.shape)
        return shape.tokens(output, shape.query_len), shape.tokens(lse, shape.query_len)

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
        shape = DenseBatch.of(block)
        q, k, v = shape.queries(query), shape.keys(key), shape.keys(value)
        stats = shape.sums(lse)
        no_dropout = _no_dropout(query.device)
        found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            shape.queries(gradient),
            q,
            k,
            v,
            shape.queries(output),
            stats.unsqueeze(3) if self._trailing_one else stats,
            no_dropout,
            no_dropout,
            None,
            None,  # cumulative lengths
            None,
            shape.query_rows,
            shape.key_rows,
            0.0,
            block.causal,
            scale=block.scale,
        )
        lens = shape.query_len, shape.key_len, shape.key_len
        query_gradient, key_gradient, value_gradient = map(shape.tokens, found, lens)
        return query_gradient, key_gradient, value_gradient


@dataclass(frozen=True)
class DenseBatch:
    """How a block's documents become a dense batch."""

    documents: int
    query_len: int
    key_len: int
    query_rows: int
    """Length they are attended with."""
    key_rows: int

    @classmethod
    def of(cls, block: AttentionBlock) -> DenseBatch:
        """Return the batch of a block's documents: of one length, or a single one, which is lengthened if causal."""
        queries, keys, count = block.query_lens[0], block.key_lens[0], len(block.query_lens)
        assert count == 1 or set(zip(block.query_lens, block.key_lens, strict=True)) == {(queries, keys)}, block
        rows = lengthened(queries) if block.causal and count == 1 else None
        return cls(count, queries, keys, rows or queries, rows or keys)

    def words(self, causal: bool) -> str:
        """Return the batch in words: what makes a plan of its own, beside heads and their width."""
        return f"{self.documents} x {self.query_rows} x {self.key_rows} tokens{', causal' if causal else ''}"

    def queries(self, tokens: Tensor) -> Tensor:
        """Return [documents, heads, rows, d] of tokens [*, heads, d]; a token's heads lie side by side."""
        return self._batch(tokens, self.query_len, self.query_rows)

    def keys(self, tokens: Tensor) -> Tensor:
        """Return the same for keys or values."""
        return self._batch(tokens, self.key_len, self.key_rows)

    def _batch(self, tokens: Tensor, length: int, rows: int) -> Tensor:
        tokens = tokens.contiguous()
        if tokens.shape[0] < self.documents * rows:
            longer = tokens.new_empty((rows, *tokens.shape[1:]))
            longer[:length] = tokens[:length]
            longer[length:] = 0.0
            tokens = longer
        return tokens[: self.documents * rows].view(self.documents, rows, *tokens.shape[1:]).transpose(1, 2)

    def sums(self, lse: Tensor) -> Tensor:
        """Return log-sum-exps [*, heads] as contiguous [documents, heads, rows]: cuDNN reads no other layout right."""
        sums = lse[: self.documents * self.query_len].unflatten(0, (self.documents, self.query_len)).transpose(1, 2)
        if self.query_rows == self.query_len:
            return sums.contiguous()
        longer = sums.new_full((*sums.shape[:2], self.query_rows), UNSEEN)
        longer[:, :, : self.query_len] = sums
        return longer

    @staticmethod
    def tokens(batch: Tensor, length: int) -> Tensor:
        """Return [documents * length, heads, d] of [documents, heads, rows, d], or the same without d."""
        return batch[:, :, :length].transpose(1, 2).flatten(0, 1)


@lru_cache(maxsize=16)
def _no_dropout(device: torch.device) -> Tensor:
    """Return the seed, which is the offset too, of a dropout that is not there."""
    return torch.zeros((), dtype=torch.int64, device=device)
