"""Split-key attention of single tokens, the merge of its splits, and the entry of a token into the cache.

A program of the first kernel reads one run of the keys of one group of one sequence; there are about two for every
multiprocessor, whatever the batch. A split's run follows from the length it reads on the card.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_SPLITS = 64
_PROGRAMS = 2
"""Programs for every multiprocessor: as many run at once, and together they hide the memory's latency."""
_FLOOR = tl.constexpr(-1.7014117331926443e38)  # `kernels.decode_attention.FLOOR`


@triton.jit
def _attend(
    query,
    keys,
    values,
    starts,
    lengths,
    partial,
    sums,
    scale,
    groups,
    splits,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    base = tl.load(starts + sequence).to(tl.int64)
    share = tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    first = split * share
    last = tl.minimum(first + share, length)
    row, column, step = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    pair = sequence * groups + group
    heads, wide = row < HEADS, column < WIDTH
    inside = heads[:, None] & wide[None, :]
    asked = tl.load(query + (pair * HEADS + row[:, None]) * WIDTH + column[None, :], mask=inside, other=0.0)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, BLOCK):
        known = start + step < last
        place = (base + start + step)[:, None] * (groups * WIDTH) + group * WIDTH + column[None, :]
        there = known[:, None] & wide[None, :]
        key = tl.load(keys + place, mask=there, other=0.0)
        value = tl.load(values + place, mask=there, other=0.0)
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - larger[:, None])
        shrunk = tl.exp(largest - larger)
        total = total * shrunk + tl.sum(weights, 1)
        found = found * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        largest = larger
    some = total > 0
    whole = tl.where(some, total, 1.0)
    target = (pair * splits + split) * HEADS + row
    tl.store(partial + target[:, None] * WIDTH + column[None, :], found / whole[:, None], mask=inside)
    tl.store(sums + target, tl.where(some, largest + tl.log(whole), _FLOOR), mask=heads)


@triton.jit
def _merge(
    partial,
    sums,
    output,
    lse,
    splits,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pair, head = tl.program_id(0), tl.program_id(1)
    split, column = tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    source = (pair * splits + split) * HEADS + head
    share = tl.load(sums + source, mask=split < splits, other=_FLOOR)
    largest = tl.max(share, 0)
    weights = tl.where(split < splits, tl.exp(share - largest), 0.0)
    total = tl.sum(weights, 0)
    inside = (split < splits)[:, None] & (column < WIDTH)[None, :]
    parts = tl.load(partial + source[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    merged = tl.sum(parts * weights[:, None], 0) / total
    target = pair * HEADS + head
    tl.store(output + target * WIDTH + column, merged, mask=column < WIDTH)
    # Where no split has a key all are at the floor, and so is the whole.
    tl.store(lse + target, tl.where(largest > _FLOOR, largest + tl.log(total), _FLOOR))


@triton.jit
def _enter(
    joint,
    cos,
    signed_sin,
    query,
    keys,
    values,
    starts,
    lengths,
    groups,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sequence, group = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    wide = column < WIDTH
    pair = sequence * groups + group
    source = joint + (pair * (HEADS + 2) + row) * WIDTH
    inside = (row < HEADS + 2) & wide
    own = tl.load(source + column, mask=inside, other=0.0)
    partner = tl.load(source + (column + WIDTH // 2) % WIDTH, mask=inside, other=0.0).to(tl.float32)
    stays = tl.load(cos + sequence * WIDTH + column, mask=wide, other=0.0)
    turns = tl.load(signed_sin + sequence * WIDTH + column, mask=wide, other=0.0)
    rotated = own.to(tl.float32) * stays + partner * turns
    place = tl.load(starts + sequence).to(tl.int64) + tl.load(lengths + sequence).to(tl.int64)
    cached = (place * groups + group) * WIDTH + column + row * 0
    tl.store(query + (pair * HEADS + row) * WIDTH + column, rotated, mask=(row < HEADS) & wide)
    tl.store(keys + cached, rotated, mask=(row == HEADS) & wide)
    tl.store(values + cached, own, mask=(row == HEADS + 1) & wide)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    lengths: Tensor,
    scale: float,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.decode_attention.decode_attention`; all tensors are contiguous.

    Args:
        query: [n, groups, r, d].
        keys: [places, groups, d].
        values: as `keys`.
        starts: int64 [n].
        lengths: int64 [n].
        scale: factor on the scores.
        splits: runs the keys of a sequence are cut into; by default what fills the card.
    """
    count, groups, heads, width = query.shape
    splits = most_splits(count * groups, query.device) if splits is None else splits
    shared = query.new_empty(count, groups, splits, heads, width, dtype=torch.float32)
    sums = query.new_empty(count, groups, splits, heads, dtype=torch.float32)
    output, lse = torch.empty_like(query), query.new_empty(count, groups, heads, dtype=torch.float32)
    columns = triton.next_power_of_2(max(width, 16))
    _attend[(count, groups, splits)](
        query,
        keys,
        values,
        starts,
        lengths,
        shared,
        sums,
        scale,
        groups,
        splits,
        HEADS=heads,
        ROWS=max(16, triton.next_power_of_2(heads)),
        WIDTH=width,
        COLUMNS=columns,
        BLOCK=64 if query.itemsize == 2 else 32,
        num_warps=4,
        num_stages=2,
    )
    _merge[(count * groups, heads)](
        shared,
        sums,
        output,
        lse,
        splits,
        HEADS=heads,
        SPLITS=triton.next_power_of_2(splits),
        WIDTH=width,
        COLUMNS=columns,
    )
    return output, lse


def enter(
    joint: Tensor, cos: Tensor, signed_sin: Tensor, keys: Tensor, values: Tensor, starts: Tensor, lengths: Tensor
) -> Tensor:
    """See `kernels.decode_attention.enter_cache`; all tensors are contiguous."""
    count, groups, rows, width = joint.shape
    query = joint.new_empty(count, groups, rows - 2, width)
    _enter[(count, groups)](
        joint,
        cos,
        signed_sin,
        query,
        keys,
        values,
        starts,
        lengths,
        groups,
        HEADS=rows - 2,
        ROWS=triton.next_power_of_2(rows),
        WIDTH=width,
        COLUMNS=triton.next_power_of_2(width),
    )
    return query


@lru_cache(maxsize=1024)
def most_splits(pairs: int, device: torch.device) -> int:
    """Return into how many runs the keys of each of `pairs` (sequence, group) are cut on a device."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    return max(1, min(_MOST_SPLITS, _PROGRAMS * processors // pairs))
