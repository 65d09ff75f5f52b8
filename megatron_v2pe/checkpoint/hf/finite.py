"""Weights that are numbers: NaN and infinity, and matrices of zeros alone, are found at the speed of memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.folder import HFWeights
from megatron_v2pe.errors import CheckpointError

_NAMED = 3
"""Tensors named in a message; of all, values are counted."""
_log = get_logger(__name__)
_BLOCK = 1 << 18
"""Bytes looked at together: few enough for the cache, many enough to be worth a call."""
_EXPONENTS: dict[torch.dtype, tuple[Any, Any, int]] = {
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.float32: (torch.int32, np.uint32, 0x7F80_0000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0_0000_0000_0000),
}
"""Type -> integers of its size, and its bits for infinity; those of NaN are above, those of every number below."""


@dataclass(frozen=True)
class _Found:
    """What is no number in one tensor."""

    name: str
    nans: int
    infinite: int
    values: int
    first: tuple[int, ...]
    value: float

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{self.name}: {self.nans + self.infinite} of {self.values} values are not finite ({self.nans} NaN, "
            f"{self.infinite} infinite), the first at {list(self.first)} is {self.value}"
        )


class NumbersOnly:
    """Looks at the tensors of a conversion, and counts those that hold NaN or infinity.

    Compares bits in one thread: PyTorch's threads wait for one another where other programs take their cores. All
    tensors are looked at before anything is said, so that one message tells how much is damaged.
    """

    def __init__(self, source: str, refuse: bool = True) -> None:
        """Start with nothing found.

        Args:
            source: folder the tensors are from, for messages.
            refuse: whether `conclude` refuses what was found, or only warns of it.
        """
        self._source, self._refuse = source, refuse
        self._found: list[_Found] = []
        self._zeros: list[str] = []

    @property
    def refused(self) -> bool:
        """Whether `conclude` will refuse: nothing more needs to be written."""
        return self._refuse and bool(self._found)

    def look(self, tensor: Tensor, name: str) -> None:
        """Look at a floating-point tensor in memory."""
        signed = _EXPONENTS[tensor.dtype][0]
        values: Any = tensor.flatten().view(signed).numpy()
        content = memoryview(values).cast("B")
        blocks = (content[begin : begin + _BLOCK] for begin in range(0, len(content), _BLOCK))
        self._note(tensor, name, _largest(blocks, tensor.dtype))

    def look_in(self, weights: HFWeights, name: str) -> None:
        """Look at a floating-point tensor of an HF folder."""
        tensor = weights.tensor(name)
        self._note(tensor, name, _largest(weights.blocks(name), tensor.dtype))

    def conclude(self) -> None:
        """Say what was found in all tensors, in a warning where it is not refused; nothing where all are numbers.

        Matrices of zeros alone are named in a warning: a download that was cut off leaves them where it had made the
        file's room.

        Raises:
            CheckpointError: some are not, and that is refused; names the first tensors, places and values, counts NaN
                and infinity over all tensors, and says how to convert them all the same.
        """
        if self._zeros:
            more = "" if len(self._zeros) <= _NAMED else f" and {len(self._zeros) - _NAMED} more"
            _log.warning(
                "%s: zeros and nothing else in %s%s; if it was not made so, its download was cut off: fetch it again",
                self._source,
                ", ".join(self._zeros[:_NAMED]),
                more,
            )
        if not self._found:
            return
        nans, infinite = sum(one.nans for one in self._found), sum(one.infinite for one in self._found)
        more = "" if len(self._found) <= _NAMED else f"; and {len(self._found) - _NAMED} more"
        found = "; ".join(map(str, self._found[:_NAMED])) + more
        line = f"{self._source}: {found}"
        if len(self._found) > 1:
            line += f"; in all {len(self._found)} tensors hold {nans} NaN and {infinite} infinite values"
        if not self._refuse:
            _log.warning("%s; converted as they are", line)
            return
        raise CheckpointError(
            f"{line}: the weights are damaged, or the training that made them diverged. "
            "tools/convert_checkpoint.py --no-refuse-non-finite converts them as they are"
        )

    def _note(self, tensor: Tensor, name: str, largest: int) -> None:
        if largest >= _EXPONENTS[tensor.dtype][2]:
            self._add(tensor, name)
        elif largest == 0 and tensor.dim() > 1:  # a bias, or a scale, may be zero
            self._zeros.append(name)

    def _add(self, tensor: Tensor, name: str) -> None:
        wrong = ~torch.isfinite(tensor)
        first = tuple(int(axis) for axis in np.unravel_index(int(wrong.flatten().int().argmax()), tensor.shape))
        nans = int(torch.isnan(tensor).sum())
        counts = nans, int(wrong.sum()) - nans, tensor.numel()
        self._found.append(_Found(name, *counts, first, float(tensor[first].item())))


def _largest(blocks: Iterable[memoryview], dtype: torch.dtype) -> int:
    """Return the bits of the largest absolute value, NaN being larger than infinity; looks no further than at these.

    Args:
        blocks: whole numbers of elements, `_BLOCK` bytes at most.
        dtype: of the elements.
    """
    _, unsigned, infinity = _EXPONENTS[dtype]
    mask = unsigned(2 ** (8 * dtype.itemsize - 1) - 1)
    without_sign = np.empty(_BLOCK // dtype.itemsize, unsigned)
    largest = 0
    for block in blocks:
        bits = np.frombuffer(block, unsigned)
        largest = max(largest, int(np.bitwise_and(bits, mask, out=without_sign[: bits.size]).max()))
        if largest >= infinity:
            break
    return largest
