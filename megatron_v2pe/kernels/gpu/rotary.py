"""The joint projection split into rotated queries, rotated keys and values, and its gradient, one pass each.

A program works on several heads of one token; a head's first and second half form the pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_SLOTS = 16


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
