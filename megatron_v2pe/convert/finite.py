"""Weights that are numbers: NaN and infinity are found at the speed of memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_v2pe.convert.hf_folder import HFWeights
from megatron_v2pe.errors import CheckpointError

_BLOCK = 1 << 18
"""Bytes looked at together: few enough for the cache, many enough to be worth a call."""
_EXPONENTS: dict[torch.dtype, tuple[Any, Any, int]] = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F80_0000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0_0000_0000_0000),
}
"""Type -> integers of its size, and its bits for infinity; those of NaN are above, those of every number below."""


def check_finite(tensor: Tensor, name: str, source: str) -> None:
    """Check that a floating-point tensor holds numbers only.

    Compares bits in one thread: PyTorch's threads wait for one another where other programs take their cores.

    Args:
        tensor: contiguous values.
        name: of the tensor, for the error.
        source: folder it is from, for the error.

    Raises:
        CheckpointError: it holds NaN or infinity; names the tensor, the place and the value.
    """
    signed = _EXPONENTS[tensor.dtype][0]
    values: Any = tensor.flatten().view(signed).numpy()
    content = memoryview(values).cast("B")
    blocks = (content[begin : begin + _BLOCK] for begin in range(0, len(content), _BLOCK))
    if not all_finite(blocks, tensor.dtype):
        raise CheckpointError(_complaint(tensor, name, source))


def all_finite(blocks: Iterable[memoryview], dtype: torch.dtype) -> bool:
    """Tell whether bytes of a floating-point type are numbers only.

    Args:
        blocks: whole numbers of elements, `_BLOCK` bytes at most.
        dtype: of the elements.
    """
    _, unsigned, infinity = _EXPONENTS[dtype]
    mask = unsigned(2 ** (8 * dtype.itemsize - 1) - 1)
    without_sign = np.empty(_BLOCK // dtype.itemsize, unsigned)
    for block in blocks:
        bits = np.frombuffer(block, unsigned)
        if np.bitwise_and(bits, mask, out=without_sign[: bits.size]).max() >= infinity:
            return False
    return True


def check_weights(weights: HFWeights, name: str, source: str) -> None:
    """Check that a tensor of an HF folder holds numbers only; arguments and errors as `check_finite` has them."""
    if not all_finite(weights.blocks(name), weights.tensor(name).dtype):
        raise CheckpointError(_complaint(weights.tensor(name), name, source))


def _complaint(tensor: Tensor, name: str, source: str) -> str:
    wrong = (~torch.isfinite(tensor)).nonzero()
    first = [int(axis) for axis in wrong[0]]
    return (
        f"{source}: {name}: {len(wrong)} of {tensor.numel()} values are not finite, the first at {first} is "
        f"{tensor[tuple(first)].item()}; the weights are damaged, or the training that made them diverged"
    )
