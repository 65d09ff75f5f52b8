"""Dense block attention by cuDNN through PyTorch, and the rule that sends it the documents it is fastest for.

On one H100 cuDNN's kernel runs at nearly twice the rate of PyTorch's FlashAttention-2 (figures at `DENSE`), but it
takes one dense batch a call, and PyTorch builds a plan for every new shape and every new stride and keeps it, each
thread its own: a recomputed forward pass builds it again in backward's. A plan costs some 75 ms: so much longer took a
call whose plan PyTorch did not keep. Packs have documents of ever new lengths.
So causal documents are lengthened to one of a few lengths; what is added stands at the end, where no real query sees
it. A block that is not causal, one of a ring's, cannot be lengthened, for its added keys would be seen; it goes to
cuDNN only where it is big enough to pay for its plans at once. All other documents share one launch of a kernel that
takes cumulative lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Literal

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel, Gradients

_log = get_logger(__name__)

STEPS_PER_OCTAVE = 32
"""Lengths between a power of two and the next. 32 cost 1.1% more tokens on average, 3.1% at most, twice that in work,
and leave 193 lengths from 2,048 to 131,072 tokens: 29 s of plans, forward and backward, in a run that meets them all.
16 would halve the plans and double the work that is lost: less in a run of some hundred steps, more in a longer one."""
SHORTEST = 128
"""The least length a document is given: one tile of the kernel."""
UNSEEN = 1e30
"""Log-sum-exp of added queries in backward: exp(score - 1e30) is 0, so they change no gradient of keys or values. It is
finite, as infinity minus infinity is not a number."""


@dataclass(frozen=True)
class Rule:
    """From how much work on a set of documents is given to cuDNN; floating-point operations of one forward pass."""

    causal: float
    """Causal documents."""
    block: float
    """Blocks that are not causal, each with plans of its own."""
    tokens: int = 1
    """Queries and keys a document must have."""


DENSE = Rule(causal=16e9, block=1.2e12)
"""What `auto` does. Measured on one H100 in bf16, 16 heads of 128 with 8 groups, forward / backward in TFLOP/s:

| case | varlen (FlashAttention-2) | cuDNN |
|---|---|---|
| 1 x 32,768, causal | 350 / 321 | 664 / 535 |
| 8 x 4,096, causal | 327 / 264 | 608 / 463 |
| 16,384 x 16,384, not causal | 364 / 307 | 684 / 577 |

Causal: F operations take F / 330e12 s in a launch that is made anyway, or F / 600e12 s in one of their own, which costs
some 20 us of launch and of an unfilled last wave. Even at F = 15e9: one document of 2,000 tokens at 16 heads of 128.
Not causal: forward and backward save F (1/364 - 1/684 + 2.5/307 - 2.5/577) / 1e12 = 5.1e-15 F s a layer, 1.2e-13 F in
24 layers; two plans cost 0.15 s. Even at F = 1.2e12, 12,000 x 12,000 tokens, if the shape is met in one step and never
again. The 20 us and lengths below 4,096 are reasoned, not measured; `tools/benchmark.py attention_kernels` measures."""
ALWAYS = Rule(causal=0.0, block=0.0, tokens=64)
"""What `cudnn` does: everything it takes; an odd short block of a ring is left to the other kernel."""


def lengthened(tokens: int) -> int:
    """Return the length that a causal document of so many tokens is attended with: the next of few."""
    if tokens <= SHORTEST:
        return SHORTEST
    step = max(1 << (tokens.bit_length() - 1), SHORTEST) // STEPS_PER_OCTAVE
    return -(-tokens // step) * step


class Cudnn:
    """cuDNN's kernel for documents of one length: a batch of them, or one that may be lengthened.

    Tensors may go on behind the block's only document; what follows is then taken for what is added, instead of a copy.
    It must be finite. Layouts are the same in every call, for PyTorch finds a plan of the backward pass by shape and
    strides of query, key and value alone, whatever strides output, gradient and log-sum-exp have this time.
    """

    _trailing_one = True
    """Log-sum-exps are [b, heads, s, 1], as since PyTorch 2.9, or [b, heads, s]; backward takes what forward gave."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        shape = _Shape.of(block)
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
        shape = _Shape.of(block)
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
class _Shape:
    """How a block's documents become a dense batch."""

    documents: int
    query_len: int
    key_len: int
    query_rows: int
    """Length they are attended with."""
    key_rows: int

    @classmethod
    def of(cls, block: AttentionBlock) -> _Shape:
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
        """Return the same of keys or values."""
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
    """Seed and offset of a dropout that is not there."""
    return torch.zeros((), dtype=torch.int64, device=device)


class Mixed:
    """Long documents, and equal neighbours, by a dense kernel; all others in one launch of another.

    A shape that the dense kernel refuses goes to the other from then on; the first is said.
    """

    def __init__(self, dense: BlockKernel, varlen: BlockKernel, rule: Rule) -> None:
        """Take two kernels; `dense` takes tensors that go on behind its document, as `Cudnn` does."""
        self.dense, self.varlen, self.rule = dense, varlen, rule
        self._refused: set[str] = set()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock) -> tuple[Tensor, Tensor]:
        """See `BlockKernel`."""
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        outputs, sums = _Pieces(), _Pieces()
        for part in self._parts(query, block):
            found = self._found(part, "forward", (query,), (key, value), ())
            outputs.add(part.query_runs, found[0])
            sums.add(part.query_runs, found[1])
        return outputs.joined(), sums.joined(heads_first=True)

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
        gradient, query, output = gradient.contiguous(), query.contiguous(), output.contiguous()
        key, value = key.contiguous(), value.contiguous()
        found = _Pieces(), _Pieces(), _Pieces()
        for part in self._parts(query, block):
            results = self._found(part, "backward", (gradient, query), (key, value), (output, lse))
            for pieces, result, runs in zip(found, results, part.gradient_runs, strict=True):
                pieces.add(runs, result)
        query_gradient, key_gradient, value_gradient = (pieces.joined() for pieces in found)
        return query_gradient, key_gradient, value_gradient

    def _parts(self, query: Tensor, block: AttentionBlock) -> tuple[Part, ...]:
        return parts(block, query.shape[1] * query.shape[2], self.rule)

    def _found(
        self,
        part: Part,
        direction: Literal["forward", "backward"],
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        results: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Call a part's kernel; `queries`, `keys` and `results` in the order of its arguments, the log-sum-exp last."""
        batch = _Shape.of(part.block).words(part.block.causal) if part.dense else None
        if batch is not None and batch not in self._refused:
            try:
                return getattr(self.dense, direction)(*part.taken(queries, keys, results), part.block)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except RuntimeError as error:
                if not self._refused:
                    first = str(error).strip().partition("\n")[0]
                    _log.warning("attention by cuDNN refused, the other kernel is used: first for %s: %s", batch, first)
                self._refused.add(batch)
        return getattr(self.varlen, direction)(*part.taken(queries, keys, results, exactly=True), part.block)


Run = tuple[int, int]
"""First token and the one after the last."""


@dataclass(frozen=True)
class Part:
    """Documents of a block that one call attends."""

    dense: bool
    block: AttentionBlock
    query_runs: tuple[Run, ...]
    """Where their queries stand among the block's: runs of neighbours."""
    key_runs: tuple[Run, ...]

    @property
    def gradient_runs(self) -> tuple[tuple[Run, ...], tuple[Run, ...], tuple[Run, ...]]:
        """Runs of the gradients of query, key and value."""
        return self.query_runs, self.key_runs, self.key_runs

    def taken(
        self, queries: Sequence[Tensor], keys: Sequence[Tensor], results: Sequence[Tensor], exactly: bool = False
    ) -> list[Tensor]:
        """Return these documents' rows, of each tensor in this order: views, copies only of several runs.

        Args:
            queries: [queries, heads, d].
            keys: [keys, groups, d].
            results: as queries, but a log-sum-exp [queries, heads] that is the last.
            exactly: nothing behind the documents; else what there is of the rows a lengthened document reaches over.
        """
        room = lengthened(self.block.query_lens[0]) if self.block.causal and not exactly else 0
        found = [_taken(tensor, self.query_runs, room) for tensor in queries]
        found += [_taken(tensor, self.key_runs, room) for tensor in keys]
        return found + [_taken(tensor, self.query_runs, room if tensor.dim() == 3 else 0) for tensor in results]


def _taken(tokens: Tensor, runs: tuple[Run, ...], room: int) -> Tensor:
    if len(runs) == 1:
        start, stop = runs[0]
        return tokens[start : max(stop, start + room)]
    return torch.cat([tokens[start:stop] for start, stop in runs])


@lru_cache(maxsize=256)
def parts(block: AttentionBlock, width: int, rule: Rule) -> tuple[Part, ...]:
    """Divide a block's documents among calls; kept, as all layers ask for the same.

    Args:
        block: the block.
        width: query heads times their width.
        rule: what the dense kernel gets.
    """
    dense: list[Part] = []
    rest: list[tuple[int, int, int, int]] = []  # query and key: first token, and tokens
    for documents in _neighbours(block):
        query_start, queries, key_start, keys = documents[0]
        count = len(documents)
        runs = ((query_start, query_start + count * queries),), ((key_start, key_start + count * keys),)
        if _is_dense(block.causal, count, queries, keys, width, rule):
            dense.append(
                Part(True, AttentionBlock((queries,) * count, (keys,) * count, block.causal, block.scale), *runs)
            )
        else:
            rest += documents
    if not rest:
        return tuple(dense)
    others = AttentionBlock(tuple(d[1] for d in rest), tuple(d[3] for d in rest), block.causal, block.scale)
    query_runs, key_runs = (_runs([(d[at], d[at] + d[at + 1]) for d in rest]) for at in (0, 2))
    return (Part(False, others, query_runs, key_runs), *dense)


def _neighbours(block: AttentionBlock) -> Iterator[list[tuple[int, int, int, int]]]:
    """Documents that can be a dense batch: neighbours of one length that need not be lengthened, else single ones."""
    queries, keys = ([0, *accumulate(lens)][:-1] for lens in (block.query_lens, block.key_lens))
    documents = zip(queries, block.query_lens, keys, block.key_lens, strict=True)
    for (length, _), alike in groupby(documents, lambda document: (document[1], document[3])):
        if block.causal and length != lengthened(length):
            yield from ([document] for document in alike)
        else:
            yield list(alike)


def _is_dense(causal: bool, count: int, queries: int, keys: int, width: int, rule: Rule) -> bool:
    work = 4.0 * count * queries * keys * width * (0.5 if causal else 1.0)
    rows = count * max(lengthened(queries) if causal else queries, keys)
    addressable = rows * width < 2**31  # strides are 32 bits wide in the key of PyTorch's plans
    return work >= (rule.causal if causal else rule.block) and min(queries, keys) >= rule.tokens and addressable


def _runs(ranges: list[Run]) -> tuple[Run, ...]:
    """Join ranges that follow each other."""
    joined: list[Run] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple(joined)


class _Pieces:
    """Results of several calls, put in the order of the tokens by one copy; the result of one call is not copied."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, Tensor]] = []

    def add(self, runs: tuple[Run, ...], result: Tensor) -> None:
        """Note where a result's rows belong."""
        if len(runs) == 1:
            self._pieces.append((runs[0][0], result))
            return
        lens = [stop - start for start, stop in runs]
        self._pieces += [(start, part) for (start, _), part in zip(runs, result.split(lens), strict=True)]

    def joined(self, heads_first: bool = False) -> Tensor:
        """Return all rows; with `heads_first` the result lies in memory as its transpose."""
        tensors = [tensor for _, tensor in sorted(self._pieces, key=lambda piece: piece[0])]
        if len(tensors) == 1:
            return tensors[0]
        return torch.cat([tensor.t() for tensor in tensors], dim=1).t() if heads_first else torch.cat(tensors)
