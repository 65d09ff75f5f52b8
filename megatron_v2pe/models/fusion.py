"""Image features into placeholder positions, and zero gradients where there is no image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def place_features(hidden: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """Replace the embeddings of image tokens by image features.

    Args:
        hidden: [S, 1, hidden].
        features: [n, hidden].
        rows: int64 [n], which of the S they replace.

    Returns:
        [S, 1, hidden]; no gradient reaches the replaced embeddings.
    """
    return hidden.index_copy(0, rows, features.unsqueeze(1).to(hidden.dtype))


class _Touch(torch.autograd.Function):
    """The identity on its first input; the parameter receives a zero gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, parameter: Tensor) -> Tensor:
        ctx.like = (parameter.shape, parameter.dtype, parameter.device)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shape, dtype, device = ctx.like
        return gradient, torch.zeros((), dtype=dtype, device=device).expand(shape)


def touch(hidden: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return `hidden` unchanged, with zero gradients for the trainable ones of `parameters`.

    Gradient buckets are reduced when every parameter has had its gradient: a micro-batch without images, or a tower
    layer beyond the selected one, must not leave them waiting. Parameters are given in the order a forward pass uses
    them; their gradients arrive in the reverse of it, as from a real backward pass, so that every rank reduces its
    buckets in the same order whatever its micro-batch holds.
    """
    for parameter in parameters:
        if parameter.requires_grad and torch.is_grad_enabled():
            hidden = _Touch.apply(hidden, parameter)
    return hidden


def in_turn(parameter: nn.Parameter | None) -> Tensor | None:
    """Return a parameter with a place of its own in the order of gradients; called in the order of use.

    An operation with several parameters has all their gradients at once, and autograd hands them on in no stated order.
    Overlapped reduction needs one order on every rank, that in which `touch` brings zeros: the last used first.
    """
    if parameter is None or not parameter.requires_grad or not torch.is_grad_enabled():
        return parameter
    return _InTurn.apply(parameter)


class _InTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def fire_forward_hooks(module: nn.Module) -> None:
    """Run the forward pre-hooks of a module and of its children ahead of the call, or instead of one.

    With overlapped parameter gathering these hooks wait for the gathered weights and ask for the next. A micro-batch
    without images never calls the tower, and modules are not called in the order they are registered in; fired here, in
    one order on every rank, the collectives match whatever a rank's micro-batch holds.
    """
    for child in module.modules():
        for hook in list(child._forward_pre_hooks.values()):
            hook(child, ())
