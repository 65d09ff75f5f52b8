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

from megatron_v2pe.errors import DataError

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
_HEADER = struct.Struct("<9sQBQQ")


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

    def __init__(self, prefix: Path) -> None:
        """Open `prefix.idx` and `prefix.bin`.

        Raises:
            DataError: not an index, of another version, or `.bin` shorter or longer than the index says.
        """
        index, data = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
        with open(index, "rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise DataError(f"{index}: not the index of a Megatron-Core indexed data set")
        _, version, code, count, _ = _HEADER.unpack(header)
        if version != _VERSION or code not in _CODES:
            raise DataError(f"{index}: version {version}, element type {code}; expected version {_VERSION}")
        if (found := index.stat().st_size) < _HEADER.size + 12 * count:
            raise DataError(f"{index}: {found} bytes are too few for {count} sequences")
        self.dtype = np.dtype(_CODES[code])
        table = np.memmap(index, mode="r", dtype="u1")
        start = _HEADER.size
        self.lengths: np.ndarray = table[start : start + 4 * count].view("<i4")
        start += 4 * count
        # Views of other types need an aligned start, which the header's 34 bytes do not give.
        self._pointers: np.ndarray = np.ndarray(count, "<i8", buffer=table, offset=start)
        expected = int(self._pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize if count else 0
        if (found := data.stat().st_size) != expected:
            raise DataError(f"{data}: {found} bytes, {index.name} says {expected}: truncated, or of another build")
        self._data = np.memmap(data, mode="r", dtype="u1") if expected else np.empty(0, dtype="u1")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        """Return one sequence; a view of the file, not to be written to."""
        start = int(self._pointers[number])
        count = int(self.lengths[number])
        return np.ndarray(count, self.dtype, buffer=self._data, offset=start)
