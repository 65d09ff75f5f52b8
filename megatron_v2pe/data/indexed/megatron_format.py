"""Megatron-Core's indexed data set format (`.bin` and `.idx`), written and read with numpy.

Layout as in `megatron.core.datasets.indexed_dataset` (version 1 of the format); the tests compare files byte by byte
with those of its `IndexedDatasetBuilder` and read ours with its `IndexedDataset`. The class itself is not used here for
two reasons: it cannot go on with a file after a restart, and importing Megatron-Core takes seconds in every reader
process.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from megatron_v2pe.data.indexed.layout import SetFiles
from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")
_LENGTH, _POINTER = struct.Struct("<i"), struct.Struct("<q")


def write_index(path: Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write an `.idx` file in which every sequence is a document of its own.

    Args:
        path: of the file.
        lengths: int [n], elements of each sequence.
        dtype: of the elements.
    """
    code = next(code for code, name in _CODES.items() if np.dtype(name) == dtype)
    lengths = np.asarray(lengths)
    assert not len(lengths) or lengths.max() < 1 << 31, "the format holds 32 bits"
    pointers = np.zeros(len(lengths), dtype="<i8")
    np.cumsum(lengths[:-1].astype(np.int64) * dtype.itemsize, out=pointers[1:])
    with open(path, "wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
        stream.write(lengths.astype("<i4").tobytes())
        stream.write(pointers.tobytes())
        stream.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


class Sequences:
    """The sequences of an indexed data set, memory-mapped."""

    def __init__(self, prefix: Path, files: SetFiles | None = None) -> None:
        """Open `prefix.idx` and `prefix.bin`.

        Args:
            prefix: of both.
            files: of the set, with checksums; by default nothing is compared with any.

        Raises:
            DataError: not an index, of another version, damaged, or `.bin` shorter or longer than the index says.
        """
        files = files or SetFiles(prefix.parent)
        self._index, self._data = files.open(f"{prefix.name}.idx"), files.open(f"{prefix.name}.bin")
        index, found = printable(self._index.path), self._index.size
        self._index.check(0, min(_HEADER.size, found))
        header = bytes(self._index.buffer[: _HEADER.size])
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise DataError(f"{index}: not the index of a Megatron-Core indexed data set")
        _, version, code, count, _ = _HEADER.unpack(header)
        if version != _VERSION or code not in _CODES:
            raise DataError(f"{index}: version {version}, element type {code}; expected version {_VERSION}")
        if found < _HEADER.size + 12 * count:
            raise DataError(f"{index}: {found} bytes are too few for {count} sequences")
        self.dtype, self._count = np.dtype(_CODES[code]), count
        self._pointers = _HEADER.size + 4 * count
        start, length = self._place(count - 1) if count else (0, 0)
        if (size := self._data.size) != (expected := start + length * self.dtype.itemsize):
            data = printable(self._data.path)
            raise DataError(f"{data}: {size} bytes, {index} says {expected}: truncated, or of another build")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return self._count

    def __getitem__(self, number: int) -> np.ndarray:
        """Return one sequence; a view of the file, not to be written to.

        Raises:
            DataError: it is damaged.
        """
        start, count = self._place(number)
        self._data.check(start, start + count * self.dtype.itemsize)
        return np.ndarray(count, self.dtype, buffer=self._data.buffer, offset=start)

    def _place(self, number: int) -> tuple[int, int]:
        """Return where a sequence begins, in bytes, and its length."""
        index, at = self._index, _HEADER.size + 4 * number
        index.check(at, at + 4)
        (length,) = _LENGTH.unpack_from(index.buffer, at)
        at = self._pointers + 8 * number
        index.check(at, at + 8)
        (start,) = _POINTER.unpack_from(index.buffer, at)
        return start, length
