"""Weights that are numbers: NaN and infinity, and matrices of zeros alone, are found; SHA-256 of every tensor."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_v2pe.base.logging import get_logger
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
class Examined:
    """What is known of a tensor whose bytes were all looked at."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str
    """The SHA-256 of its bytes, as a safetensors file holds them."""
    nans: int = 0
    infinite: int = 0
    first: int = 0
    """Where in the flat tensor the first value lies that is not finite."""
    value: float = 0.0
    """That value."""
    zeros: bool = False
    """Whether it holds zeros and nothing else."""

    @property
    def clean(self) -> bool:
        """Whether there is nothing to say of it."""
        return not (self.nans or self.infinite or self.zeros)

    def __str__(self) -> str:
        """Return in words what of it is not finite."""
        place = [int(axis) for axis in np.unravel_index(self.first, self.shape)] if self.shape else []
        return (
            f"{self.name}: {self.nans + self.infinite} of {math.prod(self.shape)} values are not finite ({self.nans} "
            f"NaN, {self.infinite} infinite), the first at {place} is {self.value}"
        )


class Examination:
    """Looks at the bytes of one floating-point tensor, block by block in their order.

    Compares bits in one thread: PyTorch's threads wait for one another where other programs take their cores.
    """

    def __init__(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Begin with a tensor of which nothing was seen."""
        self._name, self._dtype, self._shape = name, dtype, shape
        self._digest = hashlib.sha256()
        self._signed, unsigned, self._infinity = _EXPONENTS[dtype]
        self._unsigned, self._mask = unsigned, unsigned(2 ** (8 * dtype.itemsize - 1) - 1)
        self._without_sign = np.empty(_BLOCK // dtype.itemsize, unsigned)
        self._seen = self._largest = self._nans = self._infinite = 0
        self._first: tuple[int, float] | None = None

    def update(self, content: memoryview) -> None:
        """Look at the next bytes, whole elements."""
        for begin in range(0, len(content), _BLOCK):
            block = content[begin : begin + _BLOCK]  # small enough for the cache: both read it
            self._digest.update(block)
            bits = np.frombuffer(block, self._unsigned)
            largest = int(np.bitwise_and(bits, self._mask, out=self._without_sign[: bits.size]).max())
            self._largest = max(self._largest, largest)
            if largest >= self._infinity:
                self._count(bits)
            self._seen += bits.size

    def result(self) -> Examined:
        """Return what was found; all bytes of the tensor have been seen."""
        assert self._seen == math.prod(self._shape), (self._name, self._seen, self._shape)
        first, value = self._first or (0, 0.0)
        zeros = self._largest == 0 and len(self._shape) > 1 and self._seen > 0  # a bias, or a scale, may be zero
        found = self._nans, self._infinite, first, value, zeros
        return Examined(self._name, self._dtype, self._shape, self._digest.hexdigest(), *found)

    def _count(self, bits: Any) -> None:
        values = torch.from_numpy(bits.view(np.dtype(f"i{self._dtype.itemsize}")).copy()).view(self._dtype)
        wrong, nans = ~torch.isfinite(values), int(torch.isnan(values).sum())
        self._nans, self._infinite = self._nans + nans, self._infinite + int(wrong.sum()) - nans
        if self._first is None:
            place = int(wrong.int().argmax())
            self._first = (self._seen + place, float(values[place].item()))


class NumbersOnly:
    """Takes what was found in the tensors of a conversion, and counts those that hold NaN or infinity.

    All tensors are looked at before anything is said, so that one message tells how much is damaged.
    """

    def __init__(self, source: str, refuse: bool = True) -> None:
        """Start with nothing found.

        Args:
            source: folder the tensors are from, for messages.
            refuse: whether `conclude` refuses what was found, or only warns of it.
        """
        self._source, self._refuse = source, refuse
        self._found: list[Examined] = []
        self._zeros: list[str] = []

    @property
    def refused(self) -> bool:
        """Whether `conclude` will refuse: nothing more needs to be written."""
        return self._refuse and bool(self._found)

    def note(self, examined: Examined) -> None:
        """Take what was found in a tensor."""
        if examined.nans or examined.infinite:
            self._found.append(examined)
        elif examined.zeros:
            self._zeros.append(examined.name)

    def conclude(self) -> None:
        """Say what was found in all tensors, in a warning where it is not refused; nothing where all are numbers.

        Matrices of zeros alone are named in a warning: a download that was cut off leaves them where it had made the
        file's room.

        Raises:
            CheckpointError: some are not, and that is refused; names the first tensors, places and values, counts NaN
                and infinity over all tensors, and says how to convert them all the same.
        """
        self._zeros.sort()
        self._found.sort(key=lambda one: one.name)  # several threads look, and end in any order
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
