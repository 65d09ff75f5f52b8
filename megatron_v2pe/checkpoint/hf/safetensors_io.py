"""Safetensors files: headers read and checked, tensors as views of the mapped file, files written to the byte.

A safetensors file is eight bytes of header length, a JSON header that gives each tensor's type, shape and place, and
the data. Reading by mapping keeps weights out of anonymous memory; writing from a recorded header reproduces a file
exactly, with its order, metadata and padding.

The library's `safe_open` reads the data as fast (1 GB: 2.1 GB/s both), and tests compare the two. It is not used
because the header has to be read here in any case: its very text is what makes the way back byte-exact, and names that
stand twice, holes and overlaps are refused with both numbers. It also gives no way to read a tensor in blocks.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import xxhash
from torch import Tensor

from megatron_v2pe.checkpoint.range_reader import RangeReader
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, check, typed
from megatron_v2pe.foreign.text import decode, kind_of, parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 1 << 25
"""Most bytes of a header. That of a model of 2 billion parameters takes 60,000; the format allows 100 million."""
_MAX_AXES = 8
_MAGIC = {b"PK\x03\x04": "a zip", b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle"}


@dataclass(frozen=True)
class _Entry:
    """What a header says of a tensor."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: tuple[Annotated[int, Range(0)], ...]
    data_offsets: tuple[Annotated[int, Range(0)], ...]


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    text: str
    """JSON exactly as in the file, padding included."""
    tensors: tuple[TensorPlace, ...]
    """Tensors in the order of their data."""

    @property
    def data_start(self) -> int:
        """Offset of the first data byte in the file."""
        return 8 + len(self.text.encode())

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.data_start + (self.tensors[-1].end if self.tensors else 0)

    @classmethod
    def parse(cls, text: str, source: str) -> Header:
        """Read the JSON of a header.

        Raises:
            CheckpointError: not JSON, a name that stands twice, an unknown type, something that is no size, or places
                that overlap or leave holes.
        """
        content: Any = parse_json(text, f"{source}: damaged safetensors header", CheckpointError, unique=True)
        if not isinstance(content, dict):
            raise CheckpointError(f"{source}: damaged safetensors header: {kind_of(content)}, expected an object")
        check(dict[str, str], content.pop("__metadata__", {}), f"{source}: __metadata__", CheckpointError)
        places = sorted(
            (_place(name, entry, source) for name, entry in content.items()),
            key=lambda place: (place.begin, place.end),
        )
        position = 0
        for place in places:
            if place.begin != position:
                raise CheckpointError(f"{source}: {place.name} begins at byte {place.begin}, expected {position}")
            position = place.end
        return cls(text, tuple(places))

    def with_dtype(self, dtype: torch.dtype) -> Header:
        """Return the header of the same tensors, in the same order, in another floating-point type."""
        return self._laid_out({}, dtype)

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Header:
        """Return the header of the same tensors, in the same order, some of them of another shape."""
        return self._laid_out(shapes, None)

    def _laid_out(self, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype | None) -> Header:
        content = parse_json(self.text, "header", CheckpointError)
        entries: dict[str, Any] = {name: value for name, value in content.items() if name == "__metadata__"}
        position = 0
        for place in self.tensors:
            kind = dtype if dtype is not None and place.dtype.is_floating_point else place.dtype
            shape = tuple(shapes.get(place.name, place.shape))
            end = position + math.prod(shape) * kind.itemsize
            entries[place.name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
        text += " " * (-len(text.encode()) % 8)
        return Header.parse(text, "new header")


class SafetensorsFile:
    """A mapped safetensors file."""

    def __init__(self, path: Path) -> None:
        """Read the header and map the data.

        Raises:
            CheckpointError: no regular file, truncated (with both sizes), a pickle, or otherwise no safetensors file.
        """
        self.path = path
        check_regular(path, CheckpointError)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            self.header = _read_header(stream.read(8), stream.read, size, printable(path))
            if size != self.header.file_size:
                what = "truncated" if size < self.header.file_size else "too long"
                raise CheckpointError(
                    f"{printable(path)}: {what}: the file has {size} bytes, its header describes "
                    f"{self.header.file_size}"
                )
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._reader = RangeReader(path)
        self._places = {place.name: place for place in self.header.tensors}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor that lies in the mapped file; do not write to it."""
        place = self._places[name]
        if place.nbytes == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        count, offset = math.prod(place.shape), self.header.data_start + place.begin
        return torch.frombuffer(self._map, dtype=place.dtype, count=count, offset=offset).view(place.shape)

    def read_into(self, name: str, begin: int, out: memoryview) -> None:
        """Read bytes of a tensor, from byte `begin` of it on, until `out` is full; they are not mapped.

        Raises:
            CheckpointError: the file cannot be read.
        """
        place = self._places[name]
        assert begin + len(out) <= place.nbytes, name
        self._reader.read_into(self.header.data_start + place.begin + begin, out)


def write_file(
    path: Path, header: Header, tensor: Callable[[TensorPlace], Tensor], digest: xxhash.xxh3_128 | None = None
) -> None:
    """Write a file tensor by tensor, exactly as `header` lays it out.

    Args:
        path: file to create.
        header: its header; the data follow in the order of `header.tensors`.
        tensor: gives each tensor in the type and shape of its place.
        digest: takes what is written as well.
    """
    text = header.text.encode()
    with path.open("wb") as stream:

        def write(content: bytes | memoryview) -> None:
            stream.write(content)
            if digest is not None:
                digest.update(content)

        write(struct.pack("<Q", len(text)) + text)
        for place in header.tensors:
            value = tensor(place)
            assert value.dtype == place.dtype and tuple(value.shape) == place.shape, place.name
            if value.numel():
                data: Any = value.contiguous().flatten().view(torch.uint8).numpy()
                write(memoryview(data))
        stream.flush()
        os.fsync(stream.fileno())


def build_header(tensors: Sequence[tuple[str, Sequence[int]]], dtype: torch.dtype) -> Header:
    """Return the header of a new file with these names and shapes, as the safetensors library would write it."""
    return header_of([(name, shape, dtype) for name, shape in tensors])


def header_of(tensors: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> Header:
    """Return the header of a new file with these names, shapes and types, in this order."""
    position = 0
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape, dtype in tensors:
        end = position + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":"))
    return Header.parse(text + " " * (-len(text) % 8), "new header")


def _read_header(start: bytes, read: Callable[[int], bytes], size: int, source: str) -> Header:
    if start.startswith(b"version "):
        raise CheckpointError(f"{source}: a Git LFS pointer of {size} bytes, not the weights; run `git lfs pull`")
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _MAX_HEADER:  # else it may be a length of 640, 1,152 and so on, which begins as pickles do
        if what := next((what for magic, what in _MAGIC.items() if start.startswith(magic)), None):
            raise CheckpointError(f"{source}: refusing pickle: this is {what}, not a safetensors file")
        raise CheckpointError(f"{source}: not a safetensors file: {size} bytes, header length {length}")
    raw = read(length)
    if len(raw) < length:
        raise CheckpointError(f"{source}: truncated: the header has {length} bytes, the file holds {len(raw)} of them")
    return Header.parse(decode(raw, f"{source}: damaged safetensors header", CheckpointError), source)


def _place(name: str, content: Any, source: str) -> TensorPlace:
    where = f"{source}: {printable(name)[:200]}"
    if not 0 < len(name) <= 500 or printable(name) != name:
        raise CheckpointError(f"{where}: found a name of {len(name)} characters, expected up to 500 printable ones")
    entry = typed(_Entry, content, where, CheckpointError)
    if len(entry.data_offsets) != 2 or len(entry.shape) > _MAX_AXES:
        raise CheckpointError(
            f"{where}: {len(entry.shape)} axes and {len(entry.data_offsets)} data_offsets, expected up to {_MAX_AXES} "
            "and 2"
        )
    dtype, (begin, end) = DTYPES[entry.dtype], entry.data_offsets
    expected = math.prod(entry.shape) * dtype.itemsize
    if end - begin != expected:
        raise CheckpointError(f"{where}: {end - begin} bytes of data, shape {list(entry.shape)} needs {expected}")
    return TensorPlace(name, dtype, entry.shape, begin, end)
