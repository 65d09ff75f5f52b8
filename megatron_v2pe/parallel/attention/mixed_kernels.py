"""Which documents of a block go to a dense kernel and which to one that takes any lengths, and the two in one kernel.

A dense kernel (`cudnn.py`) is the faster one, but every call takes documents of one length and costs a launch, and
every new shape costs a plan. So causal documents go there from a certain amount of work on, alone or with neighbours of
their length. A block that is not causal, one of a ring's, cannot be lengthened to a length met before; it goes there
only where it is big enough to pay for its plans at once. All other documents share one launch of a kernel that takes
cumulative lengths.

Example: a causal block of documents with 4096, 4096, 700, 9000 and 30 tokens, of a model with 16 heads of 128:

    other kernel   700, 30
    dense          4096 x 2
    dense          9000, lengthened to 9216
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.parallel.attention.block import AttentionBlock, BlockKernel, Gradients
from megatron_v2pe.parallel.attention.cudnn import DenseBatch, lengthened

_log = get_logger(__name__)


@dataclass(frozen=True)
class Rule:
    """Least work for which documents go to the dense kernel, in floating-point operations of one forward pass."""

    causal: float
    """Least work of a causal document, or of equal neighbours."""
    block: float
    """Least work of a document in a block that is not causal, whose shape has a plan of its own."""
    tokens: int = 1
    """Least number of queries, and of keys, of a document."""


DENSE = Rule(causal=16e9, block=1.2e12)
"""What `auto` does. Measured on one H100 in bf16, 16 heads of 128 with 8 groups, forward / backward in TFLOP/s:

| case | varlen (FlashAttention-2) | cuDNN |
|---|---|---|
| 1 x 32,768, causal | 350 / 321 | 664 / 535 |
| 8 x 4,096, causal | 327 / 264 | 608 / 463 |
| 16,384 x 16,384, not causal | 364 / 307 | 684 / 577 |

Causal: F operations take F / 330e12 s in a launch that is made anyway, or F / 600e12 s in one of their own, which costs
some 20 us of launch and of an unfilled last wave. Both are equal at F = 15e9: one document of 2,000 tokens at 16 heads
of 128.
Not causal: forward and backward save F (1/364 - 1/684 + 2.5/307 - 2.5/577) / 1e12 = 5.1e-15 F s a layer, 1.2e-13 F in
24 layers; two plans cost 0.15 s. Both are equal at F = 1.2e12, 12,000 x 12,000 tokens, if the shape is met in one step
and never again. The 20 us and lengths below 4,096 are reasoned, not measured; `tools/benchmark.py attention_kernels`
measures."""
ALWAYS = Rule(causal=0.0, block=0.0, tokens=64)
"""What `cudnn` does: everything it takes; an odd short block of a ring is left to the other kernel."""


class Mixed:
    """Attends long documents and equal neighbours by a dense kernel, all others in one launch of another.

    A shape that the dense kernel refuses goes to the other from then on; the log has a warning at the first.
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
        batch = DenseBatch.of(part.block).words(part.block.causal) if part.dense else None
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
            exactly: return no rows behind the documents; else those that a lengthened document reaches over, if there.
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
    """Divide a block's documents among calls; the answer is kept, as all layers ask for the same.

    Args:
        block: the block.
        width: query heads times their width.
        rule: what the dense kernel gets.

    Returns:
        The one part of the other kernel, if it has any documents, then those of the dense kernel.
    """
    dense: list[Part] = []
    rest: list[_Document] = []
    for documents in _neighbours(block):
        if _is_dense(block.causal, documents, width, rule):
            dense.append(_part(True, documents, block))
        else:
            rest += documents
    return (_part(False, rest, block), *dense) if rest else tuple(dense)


class _Document(NamedTuple):
    """Where a document of a block stands: its first query and their number, its first key and their number."""

    query_start: int
    queries: int
    key_start: int
    keys: int


def _neighbours(block: AttentionBlock) -> Iterator[list[_Document]]:
    """Yield documents that can be a dense batch: neighbours of one length that is not lengthened, or a single one."""
    query_starts, key_starts = ([0, *accumulate(lens)][:-1] for lens in (block.query_lens, block.key_lens))
    documents = map(_Document, query_starts, block.query_lens, key_starts, block.key_lens)
    for (length, _), alike in groupby(documents, lambda document: (document.queries, document.keys)):
        if block.causal and length != lengthened(length):
            yield from ([document] for document in alike)
        else:
            yield list(alike)


def _is_dense(causal: bool, documents: list[_Document], width: int, rule: Rule) -> bool:
    """Tell whether neighbours of one length go to the dense kernel: they are worth a call, and it can take them."""
    count, queries, keys = len(documents), documents[0].queries, documents[0].keys
    work = 4.0 * count * queries * keys * width * (0.5 if causal else 1.0)
    rows = count * max(lengthened(queries) if causal else queries, keys)
    addressable = rows * width < 2**31  # strides are 32 bits wide in the key of PyTorch's plans
    return work >= (rule.causal if causal else rule.block) and min(queries, keys) >= rule.tokens and addressable


def _part(dense: bool, documents: list[_Document], block: AttentionBlock) -> Part:
    """Return some documents of a block as one call."""
    lens = tuple(document.queries for document in documents), tuple(document.keys for document in documents)
    query_runs = _runs([(document.query_start, document.query_start + document.queries) for document in documents])
    key_runs = _runs([(document.key_start, document.key_start + document.keys) for document in documents])
    return Part(dense, AttentionBlock(*lens, block.causal, block.scale), query_runs, key_runs)


def _runs(ranges: list[Run]) -> tuple[Run, ...]:
    """Return the ranges, those joined that follow each other."""
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
