"""Rotary angles applied: to queries or keys alone, or while the joint projection is split into its three parts.

Angles are float32 and are never rounded; products are formed in float32 or wider and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton

_ROWS = 8192
"""Tokens of which the plain form makes a wide copy at a time, in half precision."""


def split_and_rotate(joint: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values out of their joint projection; rotate the first two.

    Nothing but the shared angles is kept for the backward pass, which writes the joint's gradient at once.

    Args:
        joint: [S, groups, r + 2, d]: of every group r queries, a key and a value; each token contiguous.
        cos: float32 [S, d // 2].
        sin: float32 [S, d // 2].

    Returns:
        Queries [S, groups * r, d], keys [S, groups, d] and values [S, groups, d], contiguous, no views.
    """
    return _Split.apply(joint, cos, sin)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys: first and second half of a head form the pairs (not neighbours).

    Nothing but the shared angles is kept for the backward pass, which rotates the other way.

    Args:
        states: [S, heads, head_dim]; the product is formed in float32 or wider and cast back.
        cos: float32 [S, head_dim // 2].
        sin: float32 [S, head_dim // 2].

    Returns:
        [S, heads, head_dim] in the type of `states`, contiguous.
    """
    return _Rotate.apply(states, cos, sin)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        if use_triton(joint, cos, sin):
            from megatron_v2pe.kernels.gpu import rotary as gpu

            return gpu.split(joint if joint[0:1].is_contiguous() else joint.contiguous(), cos, sin)
        tokens, groups, parts, width = joint.shape
        query = joint.new_empty(tokens, groups, parts - 2, width)
        key = joint.new_empty(tokens, groups, 1, width)
        _rotate(query, joint[:, :, :-2], cos, sin, 1)
        _rotate(key, joint[:, :, -2:-1], cos, sin, 1)
        return query.flatten(1, 2), key.squeeze(2), joint[:, :, -1].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        query, key, value = gradients
        if use_triton(query, key, value, cos, sin):
            from megatron_v2pe.kernels.gpu import rotary as gpu

            return gpu.join(query.contiguous(), key.contiguous(), value.contiguous(), cos, sin), None, None
        tokens, groups, width = key.shape
        joint = key.new_empty(tokens, groups, query.shape[1] // groups + 2, width)
        _rotate(joint[:, :, :-2], query.unflatten(1, (groups, -1)), cos, sin, -1)
        _rotate(joint[:, :, -2:-1], key.unsqueeze(2), cos, sin, -1)
        joint[:, :, -1] = value
        return joint, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, -1), None, None


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    target = torch.empty_like(states, memory_format=torch.contiguous_format)
    _rotate(target.unsqueeze(1), states.unsqueeze(1), cos, sin, direction)
    return target


def _rotate(target: Tensor, states: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    """Rotate [S, groups, heads, d] into a target of that shape; neither needs to be contiguous."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    if torch.promote_types(states.dtype, cos.dtype) == states.dtype:
        _rotate_into(target, states, cos, sin, direction)
        return
    for part in zip(*(tensor.split(_ROWS) for tensor in (target, states, cos, sin)), strict=True):
        some_target, source, some_cos, some_sin = part
        wide = source.to(cos.dtype)
        _rotate_into(turned := torch.empty_like(wide), wide, some_cos, some_sin, direction)
        some_target.copy_(turned)


def _rotate_into(target: Tensor, states: Tensor, cos: Tensor, sin: Tensor, direction: int) -> None:
    first, second = states.chunk(2, dim=-1)
    one, other = target.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=other).addcmul_(first, sin, value=direction)
