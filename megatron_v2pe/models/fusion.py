"""Image features into placeholder positions, every count checked; and zero gradients where there is no image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fuse_image_features(embeddings: Tensor, features: Tensor, input_ids: Tensor, image_token_id: int) -> Tensor:
    """Replace the embeddings of image tokens by image features, in order.

    Args:
        embeddings: [S, 1, hidden].
        features: [tiles, tokens_per_tile, hidden].
        input_ids: [S].
        image_token_id: id of `<IMG_CONTEXT>`.

    Returns:
        [S, 1, hidden]; no gradient reaches the replaced embeddings.

    Raises:
        ValueError: the number of image tokens differs from the number of features; both are printed.
    """
    positions = (input_ids == image_token_id).nonzero().squeeze(1)
    tiles, tokens_per_tile, _ = features.shape
    if positions.numel() != tiles * tokens_per_tile:
        raise ValueError(
            f"{positions.numel()} image tokens in the input, but {tiles} tiles of {tokens_per_tile} tokens give "
            f"{tiles * tokens_per_tile} features"
        )
    return embeddings.index_copy(0, positions, features.flatten(0, 1).unsqueeze(1).to(embeddings.dtype))


class _Touch(torch.autograd.Function):
    """The identity on its first input; the others receive zero gradients."""

    @staticmethod
    def forward(ctx, hidden: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN001
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # noqa: ANN001, ANN205
        return gradient, *(torch.zeros((), dtype=d, device=v).expand(s) for s, d, v in ctx.like)


def touch(hidden: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return `hidden` unchanged, with zero gradients for the trainable ones of `parameters`.

    Gradient buckets are reduced when every parameter has had its gradient: a micro-batch without images, or a tower
    layer beyond the selected one, must not leave them waiting.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return _Touch.apply(hidden, *trainable) if trainable and torch.is_grad_enabled() else hidden


def fire_forward_hooks(module: nn.Module) -> None:
    """Run the forward pre-hooks of a module that is not called, and of its children.

    With overlapped parameter gathering these hooks wait for the gathered weights; a gather nobody waits for would be
    found pending at the next step.
    """
    for child in module.modules():
        for hook in list(child._forward_pre_hooks.values()):
            hook(child, ())
