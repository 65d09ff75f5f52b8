"""The joint projection split into rotated queries, rotated keys and values, and its gradient, one pass each.

A program works on several heads of one token; a head's first and second half form the pairs. With norms of queries and
keys the gradient's program goes through several tokens, and sums over them for the norms' weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SLOTS = 16
_ROWS = 16


@triton.jit
def _move(
    joint, query, key, value, cos, sin, row_stride, count, parts, half,
    BACKWARD: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Copy between the joint [S, groups, parts, 2 half] and its three parts, in either direction."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)  # heads of queries, keys and values in the joint's order
    column = tl.arange(0, HALF)
    group, part = slot // parts, slot % parts
    groups, queries = count // parts, parts - 2
    inside = (slot < count)[:, None] & (column < half)[None, :]
    in_joint = joint + token * row_stride + (slot * 2 * half)[:, None] + column[None, :]
    in_query = query + (token * groups * queries + group * queries + part)[:, None] * 2 * half + column[None, :]
    in_key = key + (token * groups + group)[:, None] * 2 * half + column[None, :]
    in_value = value + (token * groups + group)[:, None] * 2 * half + column[None, :]
    is_query = inside & (part < queries)[:, None]
    is_key = inside & (part == queries)[:, None]
    is_value = inside & (part == queries + 1)[:, None]
    turned = (part <= queries)[:, None]
    cosine = tl.load(cos + token * half + column, mask=column < half, other=1.0).to(tl.float32)[None, :]
    sine = tl.load(sin + token * half + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        sine = -sine
        first = tl.load(in_query, mask=is_query, other=0.0).to(tl.float32)
        first += tl.load(in_key, mask=is_key, other=0.0).to(tl.float32)
        first += tl.load(in_value, mask=is_value, other=0.0).to(tl.float32)
        second = tl.load(in_query + half, mask=is_query, other=0.0).to(tl.float32)
        second += tl.load(in_key + half, mask=is_key, other=0.0).to(tl.float32)
        second += tl.load(in_value + half, mask=is_value, other=0.0).to(tl.float32)
    else:
        first = tl.load(in_joint, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(in_joint + half, mask=inside, other=0.0).to(tl.float32)
    one = tl.where(turned, first * cosine - second * sine, first)
    other = tl.where(turned, second * cosine + first * sine, second)
    if BACKWARD:
        tl.store(in_joint, one, mask=inside)
        tl.store(in_joint + half, other, mask=inside)
    else:
        tl.store(in_query, one, mask=is_query)
        tl.store(in_query + half, other, mask=is_query)
        tl.store(in_key, one, mask=is_key)
        tl.store(in_key + half, other, mask=is_key)
        tl.store(in_value, one, mask=is_value)
        tl.store(in_value + half, other, mask=is_value)


@triton.jit
def _norm_forward(
    joint, query, key, value, query_weight, key_weight, cos, sin, row_stride, count, parts, half, eps,
    SLOTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    column = tl.arange(0, HALF)
    known = column < half
    group, part = slot // parts, slot % parts
    groups, queries = count // parts, parts - 2
    inside = (slot < count)[:, None] & known[None, :]
    in_joint = joint + token * row_stride + (slot * 2 * half)[:, None] + column[None, :]
    in_query = query + (token * groups * queries + group * queries + part)[:, None] * 2 * half + column[None, :]
    in_key = key + (token * groups + group)[:, None] * 2 * half + column[None, :]
    in_value = value + (token * groups + group)[:, None] * 2 * half + column[None, :]
    is_query = inside & (part < queries)[:, None]
    is_key = inside & (part == queries)[:, None]
    is_value = inside & (part == queries + 1)[:, None]
    cosine = tl.load(cos + token * half + column, mask=known, other=1.0).to(tl.float32)[None, :]
    sine = tl.load(sin + token * half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    first = tl.load(in_joint, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(in_joint + half, mask=inside, other=0.0).to(tl.float32)
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(squares / (2 * half) + eps)[:, None]
    of_query = (part < queries)[:, None]
    query_first = tl.load(query_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    query_second = tl.load(query_weight + half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    key_first = tl.load(key_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    key_second = tl.load(key_weight + half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    normed = first * scale * tl.where(of_query, query_first, key_first)
    other = second * scale * tl.where(of_query, query_second, key_second)
    one = normed * cosine - other * sine
    two = other * cosine + normed * sine
    tl.store(in_query, one, mask=is_query)
    tl.store(in_query + half, two, mask=is_query)
    tl.store(in_key, one, mask=is_key)
    tl.store(in_key + half, two, mask=is_key)
    tl.store(in_value, first, mask=is_value)
    tl.store(in_value + half, second, mask=is_value)


@triton.jit
def _norm_backward(
    joint, query, key, value, query_weight, key_weight, cos, sin, result, sums, rows, row_stride, count, parts, half,
    eps, ROWS: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Join the gradients of the three parts [rows, ...] to that of the joint; sum those of the weights, [4, half]."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    column = tl.arange(0, HALF)
    known = column < half
    group, part = slot // parts, slot % parts
    groups, queries = count // parts, parts - 2
    inside = (slot < count)[:, None] & known[None, :]
    of_query, of_key = (part < queries)[:, None], (part == queries)[:, None]
    is_query, is_key, is_value = inside & of_query, inside & of_key, inside & (part == queries + 1)[:, None]
    query_first = tl.load(query_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    query_second = tl.load(query_weight + half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    key_first = tl.load(key_weight + column, mask=known, other=0.0).to(tl.float32)[None, :]
    key_second = tl.load(key_weight + half + column, mask=known, other=0.0).to(tl.float32)[None, :]
    factor_first = tl.where(of_query, query_first, key_first)
    factor_second = tl.where(of_query, query_second, key_second)
    sum_first = tl.zeros((SLOTS, HALF), tl.float32)
    sum_second = tl.zeros((SLOTS, HALF), tl.float32)
    for token in range(start, tl.minimum(start + ROWS, rows)):
        place = token * row_stride + (slot * 2 * half)[:, None] + column[None, :]
        in_query = query + (token * groups * queries + group * queries + part)[:, None] * 2 * half + column[None, :]
        in_key = key + (token * groups + group)[:, None] * 2 * half + column[None, :]
        in_value = value + (token * groups + group)[:, None] * 2 * half + column[None, :]
        cosine = tl.load(cos + token * half + column, mask=known, other=1.0).to(tl.float32)[None, :]
        sine = tl.load(sin + token * half + column, mask=known, other=0.0).to(tl.float32)[None, :]
        one = tl.load(in_query, mask=is_query, other=0.0).to(tl.float32)
        one += tl.load(in_key, mask=is_key, other=0.0).to(tl.float32)
        two = tl.load(in_query + half, mask=is_query, other=0.0).to(tl.float32)
        two += tl.load(in_key + half, mask=is_key, other=0.0).to(tl.float32)
        first = tl.load(joint + place, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(joint + place + half, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = tl.rsqrt(squares / (2 * half) + eps)[:, None]
        first *= scale
        second *= scale
        given_first = one * cosine + two * sine
        given_second = two * cosine - one * sine
        sum_first += given_first * first
        sum_second += given_second * second
        given_first *= factor_first
        given_second *= factor_second
        along = tl.sum(given_first * first, axis=1) + tl.sum(given_second * second, axis=1)
        along = (along / (2 * half))[:, None]
        one = (given_first - first * along) * scale
        two = (given_second - second * along) * scale
        one = tl.where(is_value, tl.load(in_value, mask=is_value, other=0.0).to(tl.float32), one)
        two = tl.where(is_value, tl.load(in_value + half, mask=is_value, other=0.0).to(tl.float32), two)
        target = result + token * count * 2 * half + (slot * 2 * half)[:, None] + column[None, :]
        tl.store(target, one, mask=inside)
        tl.store(target + half, two, mask=inside)
    place = sums + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 4 * half + column
    tl.store(place, tl.sum(tl.where(is_query, sum_first, 0.0), axis=0), mask=known)
    tl.store(place + half, tl.sum(tl.where(is_query, sum_second, 0.0), axis=0), mask=known)
    tl.store(place + 2 * half, tl.sum(tl.where(is_key, sum_first, 0.0), axis=0), mask=known)
    tl.store(place + 3 * half, tl.sum(tl.where(is_key, sum_second, 0.0), axis=0), mask=known)


def split(joint: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.rotary.split_and_rotate`; each token of `joint` is contiguous."""
    tokens, groups, parts, width = joint.shape
    query = joint.new_empty(tokens, groups * (parts - 2), width)
    key, value = joint.new_empty(tokens, groups, width), joint.new_empty(tokens, groups, width)
    _launch(joint, query, key, value, cos, sin, backward=False)
    return query, key, value


def join(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of the joint projection from the contiguous gradients of its parts."""
    tokens, groups, width = key.shape
    joint = key.new_empty(tokens, groups, query.shape[1] // groups + 2, width)
    _launch(joint, query, key, value, cos, sin, backward=True)
    return joint


def _launch(joint: Tensor, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> None:
    tokens, groups, parts, width = joint.shape
    count, half = groups * parts, width // 2
    if not joint.numel():
        return
    slots = min(triton.next_power_of_2(count), _SLOTS)
    _move[(tokens, triton.cdiv(count, slots))](
        joint, query, key, value, cos, sin, joint.stride(0), count, parts, half,
        BACKWARD=backward, SLOTS=slots, HALF=triton.next_power_of_2(half),
    )  # fmt: skip


def split_normed(
    joint: Tensor, query_weight: Tensor, key_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.rotary.split_norm_and_rotate`; each token of `joint` is contiguous."""
    tokens, groups, parts, width = joint.shape
    query = joint.new_empty(tokens, groups * (parts - 2), width)
    key, value = joint.new_empty(tokens, groups, width), joint.new_empty(tokens, groups, width)
    count, half = groups * parts, width // 2
    if joint.numel():
        slots = min(triton.next_power_of_2(count), _SLOTS)
        _norm_forward[(tokens, triton.cdiv(count, slots))](
            joint, query, key, value, query_weight, key_weight, cos, sin, joint.stride(0), count, parts, half, eps,
            SLOTS=slots, HALF=triton.next_power_of_2(half),
        )  # fmt: skip
    return query, key, value


def join_normed(
    query: Tensor, key: Tensor, value: Tensor, joint: Tensor,
    query_weight: Tensor, key_weight: Tensor, eps: float, cos: Tensor, sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradient of the joint projection, and those of the two weights in float32.

    Args:
        query: gradient of the queries, contiguous, as are the next two.
        key: of the keys.
        value: of the values.
        joint: what was split.
        query_weight: see `split_normed`, as for all that follow.
        key_weight: see there.
        eps: see there.
        cos: see there.
        sin: see there.
    """
    tokens, groups, parts, width = joint.shape
    count, half = groups * parts, width // 2
    slots = min(triton.next_power_of_2(max(count, 1)), _SLOTS)
    grid = triton.cdiv(tokens, _ROWS), triton.cdiv(count, slots)
    result = torch.empty_like(joint, memory_format=torch.contiguous_format)
    sums = joint.new_empty(*grid, 2, width, dtype=torch.float32)
    if joint.numel():
        _norm_backward[grid](
            joint, query, key, value, query_weight, key_weight, cos, sin, result, sums, tokens, joint.stride(0),
            count, parts, half, eps, ROWS=_ROWS, SLOTS=slots, HALF=triton.next_power_of_2(half),
        )  # fmt: skip
    for_query, for_key = sums.sum(dim=(0, 1))
    return result, for_query, for_key
