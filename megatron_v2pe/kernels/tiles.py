"""Normalisation of image tiles on the device they lie on, from bytes to the model's type.

Bit for bit what the reference's Pillow and torchvision pipeline gives in float32, then rounded to the type asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from megatron_v2pe.kernels.choice import triton_on


def normalise_tiles(
    tiles: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Turn bytes into pixels: `(x / 255 - mean) / std`, formed in float32.

    On CUDA in one pass: a byte has 256 values, so that a table of 768 numbers, made once on the host by the plain form,
    holds every result. (PyTorch divides by a number otherwise on CUDA than on the CPU: the last bit would differ.)

    Args:
        tiles: uint8 [T, H, W, 3].
        mean: of the three channels.
        std: of the three channels.
        dtype: of the result.

    Returns:
        [T, 3, H, W], contiguous, on the tiles' device.
    """
    if triton_on(tiles.device.type):
        from megatron_v2pe.kernels.gpu import tiles as gpu

        return gpu.normalise(tiles.contiguous(), _table(tuple(mean), tuple(std), dtype, tiles.device))
    return _plain(tiles, mean, std).to(dtype)


def _plain(tiles: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    shape, like = (1, 3, 1, 1), {"dtype": torch.float32, "device": tiles.device}
    scaled = tiles.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
    return scaled.sub_(torch.tensor(mean, **like).view(shape)).div_(torch.tensor(std, **like).view(shape))


@lru_cache(maxsize=8)
def _table(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return every channel's 256 results, [3, 256]; they are moved to the device once."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(-1, -1, -1, 3)
    return _plain(values, mean, std).view(3, 256).to(dtype).to(device)
