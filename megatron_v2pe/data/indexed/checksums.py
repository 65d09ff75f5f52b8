"""Checksums of an indexed data set, block by block: made while files are written, compared with what a reader reads.

`checksums.bin` holds the XXH3-64 of every 64 KiB of every file, file after file in the order of their names, as
little-endian 64-bit numbers; the manifest holds the checksum of `checksums.bin` and one of itself. A reader checks each
block when it first reads something of it, once in a process. `images.bin` has none: every image has its SHA-256.

Checksums find damage, not malice: who can change a file can change its checksum, too.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.files import read_bytes
from megatron_v2pe.foreign.printable import printable

CHECKSUMS = "checksums.bin"
BLOCK = 1 << 16
"""Bytes a checksum stands for. Smaller blocks need more checksums, larger ones more reading for a single sample."""
_SHIFT = 16
_SUM = np.dtype("<u8")


class BlockSums:
    """Checksums of a file that grows: one of every block, and one over all that is there so far."""

    def __init__(self, keep: bool = True) -> None:
        """Start with an empty file; `keep`: whether those of the blocks are wanted."""
        self.keep, self._sums = keep, array("Q")
        self._chain, self._block, self._room = xxhash.xxh3_64(), xxhash.xxh3_64(), BLOCK

    def update(self, content: bytes | memoryview) -> None:
        """Take note of what is written to the end of the file."""
        rest = memoryview(content).cast("B")
        while len(rest):
            part, rest = rest[: self._room], rest[self._room :]
            self._block.update(part)
            self._room -= len(part)
            if not self._room:
                self._chain.update(self._block.digest())
                if self.keep:
                    self._sums.append(self._block.intdigest())
                self._block.reset()
                self._room = BLOCK

    def digest(self) -> str:
        """Return the checksum of all that was written, in hexadecimal digits."""
        whole = self._chain.copy()
        whole.update(self._block.digest())
        return whole.hexdigest()

    def blocks(self) -> np.ndarray:
        """Return the checksum of every block, uint64; the last block may be shorter than the others."""
        last = [self._block.intdigest()] if self._room < BLOCK else []
        return np.array([*self._sums, *last], dtype=_SUM)


def write_checksums(folder: Path, names: Sequence[str], known: Mapping[str, BlockSums]) -> str:
    """Write the checksums of files; return the checksum of that file.

    Args:
        folder: of the files.
        names: of the files.
        known: checksums made while a file was written; others are read.
    """
    content = b"".join(
        (known[name].blocks() if name in known else _sums_of(folder / name)).tobytes() for name in sorted(names)
    )
    (folder / CHECKSUMS).write_bytes(content)
    return xxhash.xxh3_128_hexdigest(content)


def _sums_of(path: Path) -> np.ndarray:
    sums = BlockSums()
    with open(path, "rb") as stream:
        while content := stream.read(BLOCK):
            sums.update(content)
    return sums.blocks()


def read_checksums(folder: Path, sizes: Mapping[str, int], digest: str) -> dict[str, np.ndarray]:
    """Return the checksums of the blocks of files, by name.

    Args:
        folder: of the files.
        sizes: bytes of each file.
        digest: as `write_checksums` returned it.

    Raises:
        DataError: `checksums.bin` is not the file that was written.
    """
    counts = {name: (size + BLOCK - 1) // BLOCK for name, size in sorted(sizes.items())}
    path, total = folder / CHECKSUMS, sum(counts.values()) * _SUM.itemsize
    content = read_bytes(path, DataError, max(total, 1))
    if len(content) != total or xxhash.xxh3_128_hexdigest(content) != digest:
        raise DataError(f"{printable(path)}: not what was written: the data set is damaged; {REMEDY}")
    sums = np.frombuffer(content, dtype=_SUM)
    ends = np.cumsum(list(counts.values()))
    return {name: sums[end - count : end] for (name, count), end in zip(counts.items(), ends.tolist(), strict=True)}


REMEDY = "copy or build it again"


class CheckedFile:
    """A file of a data set, memory-mapped; what is read of it is compared with its checksums first."""

    def __init__(self, path: Path, sums: np.ndarray | None = None) -> None:
        """Map a file.

        Args:
            path: of the file; it stays as long as it is.
            sums: of its blocks; None: nothing is compared.
        """
        self.path, self.size = path, os.path.getsize(path)
        # A plain view of the map: the subclass runs Python code at every access.
        self.bytes: np.ndarray = (
            np.memmap(path, mode="r", dtype="u1").view(np.ndarray) if self.size else np.empty(0, dtype="u1")
        )
        self.buffer: memoryview = self.bytes.data
        count = (self.size + BLOCK - 1) // BLOCK
        self._sums, self._pending = sums, bytearray(count) if sums is None else bytearray(b"\1") * count
        assert sums is None or len(sums) == count

    def check(self, start: int, stop: int) -> None:
        """Check the blocks bytes `start` to `stop` lie in, those that were not checked before.

        Raises:
            DataError: they are not what was written, or lie outside of the file.
        """
        if not 0 <= start <= stop <= self.size:
            raise DataError(
                f"{printable(self.path)}: bytes {start} to {stop} of a file of {self.size}: the data set is damaged or "
                f"was built wrongly; {REMEDY}"
            )
        if self._pending.find(1, start >> _SHIFT, (stop + BLOCK - 1) >> _SHIFT) >= 0:
            self._compare(start >> _SHIFT, (stop + BLOCK - 1) >> _SHIFT)

    def check_all(self) -> None:
        """Check the whole file; raises what `check` raises."""
        self.check(0, self.size)

    def _compare(self, first: int, last: int) -> None:
        assert self._sums is not None
        for number in range(first, last):
            if not self._pending[number]:
                continue
            start, stop = number * BLOCK, min((number + 1) * BLOCK, self.size)
            if xxhash.xxh3_64_intdigest(self.buffer[start:stop]) != self._sums[number]:
                raise DataError(
                    f"{printable(self.path)}: bytes {start} to {stop} are not those that were written: the data set "
                    f"is damaged; {REMEDY}"
                )
            self._pending[number] = 0

    def records(self, dtype: np.dtype) -> np.ndarray:
        """Return the whole file as records, unchecked.

        Raises:
            DataError: it is no whole number of them.
        """
        if self.size % dtype.itemsize:
            raise DataError(
                f"{printable(self.path)}: {self.size} bytes, no multiple of {dtype.itemsize}: the data set is damaged; "
                f"{REMEDY}"
            )
        return self.bytes.view(dtype)
