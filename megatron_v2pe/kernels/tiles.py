"""Normalisation of image tiles on the device they lie on, from bytes to the model's type.

Bit for bit what the reference's Pillow and torchvision pipeline gives in float32, then rounded to the type asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.kernels.choice import use_triton


def normalise(tiles: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Turn bytes into pixels: `(x / 255 - mean) / std`, formed in float32.

    On CUDA in one pass: a byte has 256 values, so a table of 768 numbers, made by the plain form, holds every result.

    Args:
        tiles: uint8 [T, H, W, 3].
        mean: of the three channels.
        std: of the three channels.
        dtype: of the result.

    Returns:
        [T, 3, H, W], contiguous.
    """
    constants = torch.tensor([mean, std], dtype=torch.float32, device=tiles.device)
    if use_triton(constants):
        from megatron_v2pe.kernels.gpu import tiles as gpu

        bytes_ = torch.arange(256, dtype=torch.uint8, device=tiles.device).view(1, 256, 1, 1).expand(-1, -1, -1, 3)
        return gpu.normalise(tiles.contiguous(), _plain(bytes_, constants).view(3, 256).to(dtype))
    return _plain(tiles, constants).to(dtype)


def _plain(tiles: Tensor, constants: Tensor) -> Tensor:
    mean, std = constants.view(2, 1, 3, 1, 1)
    scaled = tiles.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
    return scaled.sub_(mean).div_(std)
