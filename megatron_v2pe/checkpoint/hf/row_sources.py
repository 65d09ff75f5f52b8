"""Rows of Megatron-Core tensors, read from whatever holds them: an HF folder through its table, or a checkpoint folder.

Every conversion and comparison reads here, a stretch of rows at a time, into memory that the caller uses again. So a
conversion has one form whatever it goes from and to, and needs as much memory as its buffers.
"""

from __future__ import annotations

import math
import mmap
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from megatron_v2pe.checkpoint.checksums import Checksums
from megatron_v2pe.checkpoint.description import Shard, StoredTensor
from megatron_v2pe.checkpoint.hf.folder import FileLayout
from megatron_v2pe.checkpoint.hf.kept_shards import KeptShards
from megatron_v2pe.checkpoint.hf.mappings import RowRun, TensorMapping
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.checkpoint.range_reader import RangeReader
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.pickles import PlacedTensor, locate_tensor

_BLOCK = 1 << 20
_KEPT = 3
"""Shards in memory: an HF folder has the halves of a joint projection with another tensor between them."""
_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Bytes of an element -> a type of its size, for copies that look at no value."""


@dataclass(frozen=True)
class RowsOfKey:
    """What a source holds under a key of a Megatron-Core checkpoint."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    """The shape of the whole tensor, as it lies there: trained ones have rows of padding."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, all axes but the first."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class RowSource(Protocol):
    """Something that holds the tensors of a Megatron-Core checkpoint."""

    @property
    def keys(self) -> Mapping[str, RowsOfKey]:
        """Type and shape of every tensor."""
        ...

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Fill `out`, whole rows, with the rows of a tensor from `first_row` on.

        Raises:
            CheckpointError: they cannot be read, or are damaged.
        """
        ...


class NamedWeights(Protocol):
    """The weights of an HF folder by name."""

    @property
    def layout(self) -> FileLayout:
        """How they are cut into files."""
        ...

    def read_into(self, name: str, begin: int, out: memoryview) -> None:
        """Read bytes of a tensor, see `SafetensorsFile.read_into`."""
        ...


@dataclass(frozen=True)
class _Piece:
    key_row: int
    rows: int
    mapping: TensorMapping
    hf_row: int | None


class HFRows:
    """Rows of Megatron-Core tensors, put together from the tensors of an HF folder."""

    def __init__(self, weights: NamedWeights, table: MappingTable) -> None:
        """Find out where the rows of every key lie.

        Args:
            weights: of the folder; its tensors are those of the table, in name and shape.
            table: of the folder's model and layout.
        """
        self._weights = weights
        places = weights.layout.places()
        self._pieces: dict[str, list[_Piece]] = {}
        self._keys: dict[str, RowsOfKey] = {}
        for mapping in table.tensors:
            if mapping.copy:
                continue
            self._keys[mapping.key] = RowsOfKey(places[mapping.name].dtype, mapping.key_shape)
            pieces = self._pieces.setdefault(mapping.key, [])
            for runs in mapping.stretches():
                pieces.extend(_Piece(run.key_row, run.rows, mapping, run.hf_row) for run in runs)
        self._begins: dict[str, list[int]] = {}
        for key, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.key_row)
            self._begins[key] = [piece.key_row for piece in pieces]

    @property
    def keys(self) -> Mapping[str, RowsOfKey]:
        """Type and shape of every tensor."""
        return self._keys

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Fill `out` with rows of a tensor, see `RowSource.read`."""
        width = self._keys[key].row_bytes
        row, end = first_row, first_row + len(out) // width
        pieces = self._pieces[key]
        at = bisect_right(self._begins[key], row) - 1
        while row < end:
            piece = pieces[at]
            rows = min(piece.key_row + piece.rows, end) - row
            part = out[(row - first_row) * width : (row - first_row + rows) * width]
            self._read_piece(piece, row - piece.key_row, part, width)
            row, at = row + rows, at + 1

    def _read_piece(self, piece: _Piece, skipped: int, out: memoryview, width: int) -> None:
        if piece.hf_row is None:
            np.frombuffer(out, np.uint8)[:] = 0
            return
        name, first = piece.mapping.name, piece.hf_row + skipped
        itemsize = self._keys[piece.mapping.key].dtype.itemsize
        own = math.prod(piece.mapping.shape[1:]) * itemsize
        if own == width:
            self._weights.read_into(name, first * own, out)
            return
        rows = len(out) // width
        content = memoryview(bytearray(rows * own))
        self._weights.read_into(name, first * own, content)
        whole = np.frombuffer(out, np.uint8).reshape(rows, width)
        whole[:, own:] = 0
        whole[:, :own] = np.frombuffer(content, np.uint8).reshape(rows, own)


class MegatronRows:
    """Rows of the tensors of a Megatron-Core checkpoint folder, whatever layout wrote it; checksums are compared."""

    def __init__(
        self, folder: Path, tensors: Mapping[str, StoredTensor], checksums: Checksums | None, kept: int = 0
    ) -> None:
        """Remember what `vet_checkpoint` found in a folder.

        Args:
            folder: of the checkpoint.
            tensors: its tensors.
            checksums: compared with every shard before its rows are read; None: nothing is compared.
            kept: bytes of a shard that stays in memory, with two more, once it was compared; of larger ones none does.
        """
        self._folder, self._tensors, self._checksums = folder, tensors, checksums
        self._keys = {key: RowsOfKey(tensor.dtype, tensor.size) for key, tensor in tensors.items()}
        self._sums: dict[str, dict[tuple[int, int], str]] = {}
        self._readers: dict[str, RangeReader] = {}
        self._begins: dict[tuple[str, int], int] = {}
        self._kept, self._one_at_a_time = KeptShards(kept, _KEPT), threading.Lock()

    @property
    def keys(self) -> Mapping[str, RowsOfKey]:
        """Type and shape of every tensor."""
        return self._keys

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Fill `out` with rows of a tensor, see `RowSource.read`."""
        tensor, width = self._tensors[key], self._keys[key].row_bytes
        rows, covered = len(out) // width, 0
        for shard in tensor.shards:
            low = max(first_row, shard.begin[0])
            high = min(first_row + rows, shard.begin[0] + shard.sizes[0])
            if low >= high:
                continue
            own = math.prod(shard.sizes[1:]) * tensor.dtype.itemsize
            part, skipped = out[(low - first_row) * width : (high - first_row) * width], (low - shard.begin[0]) * own
            if own == width:
                self._read_values(key, tensor, shard, skipped, part)
            else:
                content = memoryview(bytearray((high - low) * own))
                self._read_values(key, tensor, shard, skipped, content)
                _place(part, content, tensor, shard, high - low)
            covered += (high - low) * own
        if covered != len(out):
            size = tensor.dtype.itemsize
            raise CheckpointError(f"{self._folder}: {key}: shards hold {covered // size} of {len(out) // size} values")

    def _read_values(self, key: str, tensor: StoredTensor, shard: Shard, skipped: int, out: memoryview) -> None:
        """Fill `out` with the bytes of a shard's values from byte `skipped` of them on."""
        with self._one_at_a_time:
            begin = self._begin(key, tensor, shard) + skipped
            kept = self._kept.find((shard.file, shard.offset))
            if kept is not None:
                part = kept[begin - shard.offset : begin - shard.offset + len(out)]
                np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(part, np.uint8))
                return
        self._reader(shard.file).read_into(begin, out)

    def _reader(self, name: str) -> RangeReader:
        return self._readers.setdefault(name, RangeReader(self._folder / name))

    def _begin(self, key: str, tensor: StoredTensor, shard: Shard) -> int:
        """Return the first byte of a shard's values in its file, which is compared with its checksum before."""
        known = self._begins.get((shard.file, shard.offset))
        if known is not None:
            return known
        where = f"{self._folder / shard.file}: {key}"
        if self._checksums is not None:
            self._compare(where, shard, self._checksums)
        placed = self._located(where, shard)
        if placed is None or placed.shape != shard.sizes or placed.dtype != tensor.dtype:
            found = "no tensor" if placed is None else f"{placed.dtype} {list(placed.shape)}"
            raise CheckpointError(f"{where}: holds {found}, expected a tensor {tensor.dtype} {list(shard.sizes)}")
        self._begins[shard.file, shard.offset] = shard.offset + placed.begin
        return shard.offset + placed.begin

    def _located(self, where: str, shard: Shard) -> PlacedTensor | None:
        if (kept := self._kept.find((shard.file, shard.offset))) is not None:
            return locate_tensor(kept, f"{where}: damaged", CheckpointError)
        try:
            with (self._folder / shard.file).open("rb") as stream:
                page = shard.offset - shard.offset % mmap.ALLOCATIONGRANULARITY
                length = shard.offset + shard.length - page
                mapped = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ, offset=page)
            archive = memoryview(mapped)[shard.offset - page :]  # unmapped when nothing refers to it any more
            return locate_tensor(archive, f"{where}: damaged", CheckpointError)
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self._folder / shard.file}: cannot be read: {error}") from error

    def _compare(self, where: str, shard: Shard, checksums: Checksums) -> None:
        digest, reader, place = xxhash.xxh3_128(), self._reader(shard.file), (shard.file, shard.offset)
        kept = self._kept.load(place, shard.length, lambda out: reader.read_into(shard.offset, out))
        if kept is not None:
            digest.update(kept)
        else:  # through the cache, from which its rows are read after that
            reader = RangeReader(self._folder / shard.file, direct=False)
            buffer = memoryview(bytearray(min(_BLOCK, shard.length)))
            for begin in range(0, shard.length, _BLOCK):
                block = buffer[: min(_BLOCK, shard.length - begin)]
                reader.read_into(shard.offset + begin, block)
                digest.update(block)
        sums = self._sums.setdefault(shard.file, checksums.shards_of(shard.file))
        expected, found = sums.get((shard.offset, shard.length)), digest.hexdigest()
        if found != expected:
            raise CheckpointError(
                f"{where}: damaged: the shard at byte {shard.offset} has the checksum {found}, {expected} when it "
                "was written; copy the checkpoint again, or go on from an older one"
            )


class HFTensors:
    """The HF tensors of a table, put together from rows of Megatron-Core tensors."""

    def __init__(self, source: RowSource, table: MappingTable) -> None:
        """Join a source and the table of the layout that is asked for."""
        self._source, self._mappings = source, table.by_name()
        self._runs: dict[str, list[RowRun]] = {}

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that a tensor is stored in."""
        return self._source.keys[self._mappings[name].key].dtype

    def row_bytes(self, name: str) -> int:
        """Return the bytes of a row of an HF tensor in the type it is stored in."""
        return math.prod(self._mappings[name].shape[1:]) * self.dtype(name).itemsize

    def stretches(self, name: str, most: int) -> Iterator[tuple[int, int]]:
        """Yield first row and number of rows of an HF tensor, `most` bytes at a time but at least a row."""
        total, step = self._mappings[name].shape[0], max(1, most // max(1, self.row_bytes(name)))
        for first in range(0, total, step):
            yield first, min(step, total - first)

    def read(self, name: str, first_row: int, out: memoryview) -> None:
        """Fill `out` with rows of an HF tensor from `first_row` on, in the type they are stored in.

        Raises:
            CheckpointError: they cannot be read or are damaged, or what is padding holds other numbers than zero.
        """
        mapping, own = self._mappings[name], self.row_bytes(name)
        end = first_row + len(out) // own
        filled = 0
        for run in self.runs_of(name):
            if run.hf_row is None:
                continue
            low, high = max(first_row, run.hf_row), min(end, run.hf_row + run.rows)
            if low < high:
                part = out[(low - first_row) * own : (high - first_row) * own]
                self._read(mapping, run.key_row + low - run.hf_row, part, own)
                filled += high - low
        assert filled == end - first_row, name

    def check_padding(self, name: str) -> None:
        """Check that the rows of groups that are padding are zeros; HF has no place for them.

        Raises:
            CheckpointError: they are not.
        """
        mapping = self._mappings[name]
        width = self._source.keys[mapping.key].row_bytes
        for run in self.runs_of(name):
            if run.hf_row is None:
                content = memoryview(bytearray(run.rows * width))
                self._source.read(mapping.key, run.key_row, content)
                self._check_zeros(mapping, np.frombuffer(content, np.uint8))

    def runs_of(self, name: str) -> list[RowRun]:
        """Return where the rows of an HF tensor lie, in the order of the Megatron-Core tensor."""
        if name not in self._runs:
            self._runs[name] = [run for runs in self._mappings[name].stretches() for run in runs]
        return self._runs[name]

    def _read(self, mapping: TensorMapping, key_row: int, out: memoryview, own: int) -> None:
        width = self._source.keys[mapping.key].row_bytes
        if width == own:
            self._source.read(mapping.key, key_row, out)
            return
        rows = len(out) // own
        content = memoryview(bytearray(rows * width))
        self._source.read(mapping.key, key_row, content)
        whole = np.frombuffer(content, np.uint8).reshape(rows, width)
        self._check_zeros(mapping, whole[:, own:])
        np.frombuffer(out, np.uint8).reshape(rows, own)[:] = whole[:, :own]

    def _check_zeros(self, mapping: TensorMapping, padding: Any) -> None:
        itemsize = self.dtype(mapping.name).itemsize
        values = np.ascontiguousarray(padding).reshape(-1).view(_INTEGERS[itemsize]) << 1  # but for the sign
        if values.any():
            raise CheckpointError(
                f"{mapping.key}: {int(np.count_nonzero(values))} of {values.size} values of its padding are not zero; "
                f"{mapping.name} has no place for them"
            )


def _place(out: memoryview, content: memoryview, tensor: StoredTensor, shard: Shard, rows: int) -> None:
    """Copy rows of a shard that holds a part of the other axes to their places in whole rows."""
    kind = _INTEGERS[tensor.dtype.itemsize]
    whole = np.frombuffer(out, kind).reshape(rows, *tensor.size[1:])
    where = tuple(slice(low, low + extent) for low, extent in zip(shard.begin[1:], shard.sizes[1:], strict=True))
    whole[(slice(None), *where)] = np.frombuffer(content, kind).reshape(rows, *shard.sizes[1:])
