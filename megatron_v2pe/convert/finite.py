"""Weights that are numbers: NaN and infinity are found at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_v2pe.errors import CheckpointError

_BLOCK = 1 << 18
"""Elements looked at together: few enough for the cache, many enough to be worth a call."""


def check_finite(tensor: Tensor, name: str, source: str) -> None:
    """Check that a floating-point tensor holds numbers only.

    The sum of a block that holds NaN or infinity is neither a number; of the few blocks whose sum is too large for the
    type every value is looked at.

    Args:
        tensor: contiguous values.
        name: of the tensor, for the error.
        source: folder it is from, for the error.

    Raises:
        CheckpointError: it holds NaN or infinity; names the tensor, the place and the value.
    """
    flat = tensor.flatten()
    for number, block in enumerate(flat.split(_BLOCK)):
        if torch.isfinite(block.sum()) or torch.isfinite(block).all():
            continue
        place = number * _BLOCK + int((~torch.isfinite(block)).nonzero()[0])
        index = [int(axis) for axis in torch.unravel_index(torch.tensor(place), tensor.shape)]
        count = sum(int((~torch.isfinite(part)).sum()) for part in flat.split(_BLOCK))
        raise CheckpointError(
            f"{source}: {name}: {count} of {flat.numel()} values are not finite, the first at {index} is "
            f"{flat[place].item()}; the weights are damaged, or the training that made them diverged"
        )
