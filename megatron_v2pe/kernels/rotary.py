"""Rotary angles applied: to queries or keys alone, or while the joint projection is split into its three parts.

The split may normalise every head of queries and keys before it rotates them, as Qwen3 does.

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


def split_norm_and_rotate(
    joint: Tensor, query_weight: Tensor, key_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take queries, keys and values out of their joint projection; normalise every head of the first two, then rotate.

    The norm is RMSNorm over one head. For the backward pass the joint projection is kept, from which the normed heads
    are formed again, and none of them.

    Args:
        joint: [S, groups, r + 2, d]: of every group r queries, a key and a value; each token contiguous.
        query_weight: [d], of the queries' norm.
        key_weight: [d], of the keys' norm.
        eps: added to the mean of squares of a head.
        cos: float32 [S, d // 2].
        sin: float32 [S, d // 2].

    Returns:
        Queries [S, groups * r, d], keys [S, groups, d] and values [S, groups, d], contiguous, no views. What is
        computed of a head is rounded once, after the rotation.
    """
    return _SplitNormed.apply(joint, query_weight, key_weight, eps, cos, sin)


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


class _SplitNormed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, joint: Tensor, query_weight: Tensor, key_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if use_triton(joint, query_weight, key_weight, cos, sin):
            from megatron_v2pe.kernels.gpu import rotary as gpu

            joint = joint if joint[0:1].is_contiguous() else joint.contiguous()
            results = gpu.split_normed(joint, query_weight, key_weight, eps, cos, sin)
        else:
            tokens, groups, parts, width = joint.shape
            query = joint.new_empty(tokens, groups, parts - 2, width)
            key = joint.new_empty(tokens, groups, 1, width)
            _norm_and_rotate(query, joint[:, :, :-2], query_weight, eps, cos, sin)
            _norm_and_rotate(key, joint[:, :, -2:-1], key_weight, eps, cos, sin)
            value = joint[:, :, -1].clone(memory_format=torch.contiguous_format)
            results = query.flatten(1, 2), key.squeeze(2), value
        ctx.save_for_backward(joint, query_weight, key_weight, cos, sin)
        ctx.eps = eps
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        joint, query_weight, key_weight, cos, sin = ctx.saved_tensors
        query, key, value = gradients
        if use_triton(joint, query, key, value, query_weight, key_weight, cos, sin):
            from megatron_v2pe.kernels.gpu import rotary as gpu

            parts = query.contiguous(), key.contiguous(), value.contiguous()
            result, for_query, for_key = gpu.join_normed(*parts, joint, query_weight, key_weight, ctx.eps, cos, sin)
        else:
            result = torch.empty_like(joint, memory_format=torch.contiguous_format)
            groups = joint.shape[1]
            query = query.unflatten(1, (groups, -1))
            angles = ctx.eps, cos, sin
            for_query = _norm_gradient(result[:, :, :-2], query, joint[:, :, :-2], query_weight, *angles)
            for_key = _norm_gradient(result[:, :, -2:-1], key.unsqueeze(2), joint[:, :, -2:-1], key_weight, *angles)
            result[:, :, -1] = value
        return result, for_query.to(query_weight.dtype), for_key.to(key_weight.dtype), None, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, -1), None, None


def _norm_and_rotate(target: Tensor, states: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> None:
    """Normalise and rotate [S, groups, heads, d] into a target of that shape; neither needs to be contiguous."""
    angles = cos[:, None, None], sin[:, None, None]
    parts = (tensor.split(_ROWS) for tensor in (target, states, *angles))
    for some_target, source, some_cos, some_sin in zip(*parts, strict=True):
        unit, _ = _unit(source, eps)
        unit *= weight
        _rotate_into(turned := torch.empty_like(unit), unit, some_cos, some_sin, 1)
        some_target.copy_(turned)


def _norm_gradient(
    target: Tensor, gradient: Tensor, states: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> Tensor:
    """Write the gradient of what `_norm_and_rotate` was given, from that of its result; return that of the weight."""
    angles = cos[:, None, None], sin[:, None, None]
    total = torch.zeros(weight.shape, dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
    parts = (tensor.split(_ROWS) for tensor in (target, gradient, states, *angles))
    for some_target, given, source, some_cos, some_sin in zip(*parts, strict=True):
        unit, inverse = _unit(source, eps)
        change = torch.empty_like(unit)
        _rotate_into(change, given.to(unit.dtype), some_cos, some_sin, -1)
        total += (change * unit).sum(dim=(0, 1, 2))
        change *= weight
        change -= unit * (change * unit).mean(dim=-1, keepdim=True)
        some_target.copy_(change.mul_(inverse))
    return total


def _unit(states: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return heads [..., d] divided by their root mean squares, in float32 or wider, and the reciprocals [..., 1]."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return wide * inverse, inverse


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
