"""Which context-parallel rank holds which tokens of a pack: the one owner of that order.

Every document is padded to a multiple of twice the ranks and cut into that many chunks of equal length; rank r holds
chunks r and 2 C - 1 - r, so that under a causal mask all ranks have the same work. A pack ends with a document of
padding where its length must divide by more (sequence parallelism splits a rank's tokens once more). With one rank the
order is the pack's own. Everything that is sharded, ids, positions, labels, weights or hidden states, goes through
this object: shift labels first, shard afterwards.

Example: two documents of 8 and 3 tokens on two ranks (`.` is padding) become chunks of 2 and 1 tokens,

    tokens   0 1 2 3 4 5 6 7 | 8 9 10 .
    rank 0   0 1         6 7   8      .
    rank 1       2 3 4 5         9 10
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import lcm

import torch
from torch import Tensor

from megatron_v2pe.errors import LayoutError


@dataclass(frozen=True)
class ZigzagLayout:
    """The order of one pack over a context-parallel group; pure arithmetic on lengths."""

    lengths: tuple[int, ...]
    """Tokens of each document, without padding."""
    context_parallel_size: int = 1
    tensor_model_parallel_size: int = 1
    """Ranks a context-parallel rank's tokens may be split over once more, in equal runs."""
    window: int | None = None
    """Most tokens the padded pack may have; None: no limit."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            LayoutError: a document without tokens, or a padded pack beyond the window; the numbers are printed.
        """
        assert self.context_parallel_size > 0 and self.tensor_model_parallel_size > 0
        for number, length in enumerate(self.lengths):
            if length < 1:
                raise LayoutError(f"document {number} of the pack has {length} tokens")
        if self.window is not None and self.num_tokens > self.window:
            raise LayoutError(
                f"a pack of {sum(self.lengths)} tokens in {len(self.lengths)} documents is {self.num_tokens} tokens "
                f"long when padded for context_parallel_size {self.context_parallel_size} x "
                f"tensor_model_parallel_size {self.tensor_model_parallel_size}, more than the window of {self.window}"
            )

    @cached_property
    def seqlens(self) -> tuple[int, ...]:
        """Lengths of the documents with padding; a document of padding alone comes last where one is needed."""
        document, pack = padding_multiples(self.context_parallel_size, self.tensor_model_parallel_size)
        padded = [_round_up(length, document) for length in self.lengths]
        total = sum(padded)
        rest = max(_round_up(total, pack), pack) - total
        return (*padded, rest) if rest else tuple(padded)

    @property
    def num_tokens(self) -> int:
        """Length of the padded pack."""
        return sum(self.seqlens)

    @property
    def num_local_tokens(self) -> int:
        """Tokens each context-parallel rank holds."""
        return self.num_tokens // self.context_parallel_size

    @cached_property
    def local_seqlens(self) -> tuple[int, ...]:
        """Tokens of each document on a rank: its two chunks, one behind the other."""
        return tuple(length // self.context_parallel_size for length in self.seqlens)

    @cached_property
    def cu_seqlens(self) -> tuple[int, ...]:
        """Where the documents of the padded pack begin, and the end."""
        return (0, *accumulate(self.seqlens))

    def padded_positions(self, rank: int) -> Tensor:
        """Return indices into the padded pack of a rank's tokens, in its order: int64 [num_local_tokens]."""
        size = self.context_parallel_size
        if size == 1:
            return torch.arange(self.num_tokens)
        parts: list[Tensor] = []
        for start, length in zip(self.cu_seqlens, self.seqlens, strict=False):
            chunk = length // (2 * size)
            for number in (rank, 2 * size - 1 - rank):
                parts.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
        return torch.cat(parts)

    def tokens_of(self, rank: int) -> Tensor:
        """Return each of a rank's tokens' index in the unpadded pack, -1 for padding: int64 [num_local_tokens]."""
        return self._real_tokens[self.padded_positions(rank)]

    def shard(self, values: Tensor, rank: int, fill: float) -> Tensor:
        """Return a rank's share of values [S, ...] that stand one per token, padding filled up.

        Raises:
            LayoutError: `values` has another length than the pack.
        """
        if values.shape[0] != sum(self.lengths):
            raise LayoutError(
                f"{values.shape[0]} values to shard, but documents of {sum(self.lengths)} tokens: every tensor of a "
                "pack (ids, labels, weights, positions) must cover its documents"
            )
        tokens = self.tokens_of(rank).to(values.device)
        padding = tokens < 0
        if not values.shape[0]:
            return values.new_full((len(tokens), *values.shape[1:]), fill)
        local = values.index_select(0, tokens.clamp(min=0))
        return local.masked_fill_(padding.view(-1, *[1] * (values.dim() - 1)), fill)

    def unshard(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the shares of all ranks, in rank order, together again without padding: [S, ...].

        Raises:
            LayoutError: shares are missing or of another length.
        """
        lengths = [part.shape[0] for part in parts]
        if lengths != [self.num_local_tokens] * self.context_parallel_size:
            raise LayoutError(
                f"shares of {lengths} tokens, expected {self.context_parallel_size} of {self.num_local_tokens}"
            )
        whole = parts[0].new_empty((sum(self.lengths), *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            tokens = self.tokens_of(rank)
            kept = tokens >= 0
            whole[tokens[kept].to(whole.device)] = part[kept.to(part.device)]
        return whole

    def find(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tell where tokens are held.

        Args:
            tokens: int64 [n], indices into the unpadded pack.

        Returns:
            int64 [n] twice: the rank, and the index among that rank's tokens.
        """
        size = self.context_parallel_size
        rank = torch.empty(sum(self.lengths), dtype=torch.int64)
        index = torch.empty_like(rank)
        for number in range(size):
            held = self.tokens_of(number)
            kept = (held >= 0).nonzero().squeeze(1)
            rank[held[kept]], index[held[kept]] = number, kept
        return rank[tokens], index[tokens]

    def documents_in_order(self) -> Tensor:
        """Return the order that brings all ranks' shares, one behind the other, into the padded pack's: int64 [S].

        `torch.cat(shares)[order]` is the padded pack; what all-to-all attention needs to know.
        """
        gathered = torch.cat([self.padded_positions(rank) for rank in range(self.context_parallel_size)])
        return torch.empty_like(gathered).scatter_(0, gathered, torch.arange(len(gathered)))

    @cached_property
    def _real_tokens(self) -> Tensor:
        """Return for every place of the padded pack the index of its token in the unpadded one, -1 for padding."""
        real = torch.full((self.num_tokens,), -1)
        taken = 0
        for start, length in zip(self.cu_seqlens, self.lengths, strict=False):
            real[start : start + length] = torch.arange(taken, taken + length)
            taken += length
        return real


def padding_multiples(context_parallel_size: int, tensor_model_parallel_size: int) -> tuple[int, int]:
    """Return what a document's and what a pack's length must be multiples of: 2 C (1 alone), and lcm(2 C, C x T)."""
    document = 2 * context_parallel_size if context_parallel_size > 1 else 1
    return document, lcm(document, context_parallel_size * tensor_model_parallel_size)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
