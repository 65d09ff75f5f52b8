"""The shards of a checkpoint that were read last: bytes that were compared with their checksum are not read again.

The tensors of an HF folder come in another order than the shards, and several may lie in one shard.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable

from megatron_v2pe.checkpoint.appended_file import PAGE

Place = tuple[str, int]
"""Name of the data file, first byte."""


class KeptShards:
    """Memory for a few shards, which is used again for the next; one thread at a time may use it."""

    def __init__(self, largest: int, number: int) -> None:
        """Begin with no shard.

        Args:
            largest: bytes of a shard, at most; larger ones are not kept.
            number: of shards.
        """
        self._largest, self._number = largest, number
        self._kept: OrderedDict[Place, tuple[memoryview, mmap.mmap]] = OrderedDict()

    def find(self, place: Place) -> memoryview | None:
        """Return the bytes of a shard, None where they are not kept; they hold until the next `load`."""
        if place not in self._kept:
            return None
        self._kept.move_to_end(place)
        return self._kept[place][0]

    def load(self, place: Place, length: int, read: Callable[[memoryview], None]) -> memoryview | None:
        """Read a shard in place of the one that was used longest ago; return its bytes, None where it is too large.

        Args:
            place: of the shard.
            length: its bytes.
            read: fills memory with them, see `RangeReader.read_into`.
        """
        if length > self._largest:
            return None
        memory = None
        if len(self._kept) >= self._number:
            _, (_, memory) = self._kept.popitem(last=False)
        skipped = place[1] % PAGE  # lies against a page as in the file: it is read from the disk to its place
        if memory is None or len(memory) < skipped + length:
            memory = mmap.mmap(-1, self._largest + PAGE)  # what nobody touches takes no memory
        content = memoryview(memory)[skipped : skipped + length]
        read(content)
        self._kept[place] = content, memory
        return content
