"""Tiles encoded a few at a time, each few once more in the backward pass: of a pack's images only pixels are kept.

Recompute layer by layer keeps the input of every tower layer: 24 GiB for 507 tiles of InternVL2-2B in bf16. Tiles do
not see one another, so the tower can as well run from pixels to features for a few of them, at the same cost: it keeps
the pixels, a fiftieth, and while it goes back the activations of these few tiles, when the decoder's are free again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

Encode = Callable[[Tensor, int], Tensor]
"""Turns [n, 3, size, size] into features, given which tile of all is the first of them."""


def encode_in_parts(encode: Encode, pixel_values: Tensor, tiles: int, config: TransformerConfig) -> Tensor:
    """Encode tiles, `tiles` at a time, and encode them again in the backward pass.

    Args:
        encode: from tiles to features; it draws no random numbers but by key.
        pixel_values: [n, 3, size, size], at least one.
        tiles: encoded at once, at least one.
        config: the wrapped model's, through which overlapped gradient reduction is held back.

    Returns:
        The features of all, as `encode` gives them.
    """
    anchor = torch.zeros((), requires_grad=True)  # makes a node of the graph, through which parameters are reached
    return _Parts.apply(anchor, encode, pixel_values, tiles, config)


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, encode: Encode, pixel_values: Tensor, tiles: int, config: TransformerConfig
    ) -> Tensor:
        ctx.save_for_backward(pixel_values)
        ctx.settings = (encode, tiles, config)
        parts = pixel_values.split(tiles)
        return torch.cat([encode(part, number * tiles) for number, part in enumerate(parts)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        (pixel_values,) = ctx.saved_tensors
        encode, tiles, config = ctx.settings
        parts = list(zip(pixel_values.split(tiles), gradient.split(tiles), strict=True))
        for number, (part, part_gradient) in enumerate(parts):
            with torch.enable_grad():
                features = encode(part, number * tiles)
            with nullcontext() if number + 1 == len(parts) else gradients_held(config):
                torch.autograd.backward(features, part_gradient)
        return (None,) * 5


@contextmanager
def gradients_held(config: TransformerConfig) -> Iterator[None]:
    """Add gradients up without counting them as arrived.

    Overlapped reduction sends a bucket once every parameter in it has had its gradient as often as in the first step;
    ranks with more tiles than others would have it more often.
    """
    sync = config.no_sync_func
    groups = [] if sync is None else list(sync.__self__.bucket_groups)  # type: ignore[attr-defined]
    before = [group.is_last_microbatch for group in groups]
    try:
        for group in groups:
            group.is_last_microbatch = False
        yield
    finally:
        for group, last in zip(groups, before, strict=True):
            group.is_last_microbatch = last
