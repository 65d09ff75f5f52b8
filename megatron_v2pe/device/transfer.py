"""From host to device without a wait: through pinned memory, and ahead of use on a stream of its own.

A plain copy of ordinary host memory to CUDA waits for all that the device still has to do. A copy of pinned memory does
not, and on a second stream it runs beside the computation. On the CPU all of this is the identity: no stream, no copy.
The CUDA half does not run on a machine without a GPU (`tests/unit/device/test_transfer_gpu.py` runs it where there is
one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Movable")


class Movable(Protocol):
    """What holds tensors that are moved together."""

    def mapped(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy whose every tensor is what `change` made of it."""
        ...


Item = TypeVar("Item", bound=Movable)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on the device; the host does not wait for what the device still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Arriving(Generic[Item]):
    """What is on its way to the device."""

    item: Item
    """On the device; not to be used before `arrived`."""
    event: torch.cuda.Event | None
    """When it is there; None: it is."""


class Copies:
    """Copies to one device on a stream of their own, begun by any thread, used by the one that computes."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream; there is none on the CPU."""
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def pinned(self, item: Item) -> Item:
        """Return an item of the host in pinned memory, from which copies run beside the host and the device."""
        return item if self._stream is None else item.mapped(_pinned)

    def start(self, item: Item) -> Arriving[Item]:
        """Begin to copy an item in pinned memory; returns at once."""
        if self._stream is None:
            return Arriving(item, None)
        with torch.cuda.stream(self._stream):
            there = item.mapped(lambda tensor: tensor.to(self._device, non_blocking=True))
            event = torch.cuda.Event()
            event.record(self._stream)
        return Arriving(there, event)

    def arrived(self, arriving: Arriving[Item]) -> Item:
        """Return what has been copied, for use on the calling thread's stream: the device waits, not the host."""
        if arriving.event is None:
            return arriving.item
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(arriving.event)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # its memory belongs to the other stream, which must not hand it out too soon
            return tensor

        return arriving.item.mapped(used)

    def one_ahead(self, first: Arriving[Item], others: Iterable[Item]) -> Iterator[Item]:
        """Yield items on the device; while one is used the next is copied, and no more than that.

        Args:
            first: already on its way.
            others: in pinned memory.
        """
        ahead: Arriving[Item] | None = first
        following = iter(others)
        del first
        while ahead is not None:
            items = [self.arrived(ahead)]
            after = next(following, None)
            ahead = None if after is None else self.start(after)
            del after
            yield items.pop()  # not held here while it is used


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()
