"""Pickles and `torch.save` archives from outside, read without running what they ask for.

A pickle can name any function and have it called. The unpickler here knows a short list of names and puts an inert
stand-in in the place of each: no class and no function of another library is ever called, and nothing is imported. What
is checked is what is used: the values are built from the very bytes that were looked at, never loaded a second time.
Tensors of a `torch.save` archive are views of the archive's bytes.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable

Name = tuple[str, str]
"""Module and name of a class or function, as a pickle states it."""
LARGEST_PICKLE = 1 << 30
"""Bytes of a pickle, at most: the description of a checkpoint of a million shards takes 500 MB."""
LARGEST_RECORD = 1 << 28
"""Bytes of a record of an archive that is no tensor's data, at most."""
DEEPEST = 64
"""Lists, tuples and dictionaries of an archive inside one another, at most."""
MOST_VALUES = 1 << 20
"""Values of an archive, at most; what stands in several places counts in each."""

DTYPES: Mapping[Name, torch.dtype] = {
    ("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_STORAGES: Mapping[Name, torch.dtype] = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_TENSOR: Name = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED: Name = ("collections", "OrderedDict")


class Record:
    """What a pickle says of an object of an allowed class: how it was made, and its state. It has no behaviour."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> Record:
        """Note the arguments."""
        record = super().__new__(cls)
        record.arguments = arguments
        return record

    def __setstate__(self, state: Any) -> None:
        """Note the state."""
        self.state = state

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return the state if it is a dictionary of attributes, else an empty dictionary."""
        return self.state if isinstance(self.state, dict) else {}


_InPython: Any = vars(pickle)["_Unpickler"]
_KEYS = (str, int, float, bytes, type(None), Record)
"""What may be hashed while a pickle is read; a `Record` is hashed by what it is, not by what it holds."""


class _Unpickler(_InPython):
    """An unpickler that finds stand-ins only, and hashes only what is quickly hashed.

    It is Python's own in Python: the one in C hashes whatever stands as a key. Sixty tuples, each twice in the next,
    run without end, and no signal stops it; 100,000 tuples in one another end the process.
    """

    dispatch = dict(_InPython.dispatch)

    def __init__(
        self,
        stream: io.BytesIO,
        found: Mapping[Name, Any],
        source: str,
        error: Kind,
        storage: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(stream)
        self._found, self._source, self._error, self._storage = found, source, error, storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of an allowed name; nothing is imported."""
        if (module, name) not in self._found:
            raise self._error(
                f"{self._source}: refused: it asks for {printable(f'{module}.{name}')[:120]}, which no checkpoint "
                "needs and which could run code; the file is damaged or malicious"
            )
        return self._found[module, name]

    def _check_keys(self, keys: list[Any]) -> None:
        if any(not isinstance(key, _KEYS) for key in keys):
            raise self._error(f"{self._source}: refused: a key that is neither text, a number nor an object")

    def load_setitem(self) -> None:
        """Set one item of a dictionary."""
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dictionary of keys and values."""
        self._check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        """Add items to a set."""
        self._check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Make a set that stays as it is."""
        self._check_keys(self.stack)
        super().load_frozenset()

    def load_build(self) -> None:
        """Give an object its state: a record, or an ordered dictionary, which takes attributes."""
        if not isinstance(self.stack[-2], (Record, collections.OrderedDict)):
            raise self._error(f"{self._source}: refused: a state for something that has none")
        super().load_build()

    def load_buffer(self) -> None:
        """Refuse bytes that can be changed, for which memory would be taken before they are read."""
        raise self._error(f"{self._source}: refused: a kind of bytes that no checkpoint needs")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    for _code in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_code[0]] = load_buffer

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage a tensor refers to."""
        if self._storage is None:
            raise self._error(f"{self._source}: refused: a reference to data outside of the file")
        return self._storage(pid)


def unpickle(content: bytes, classes: Collection[Name], source: str, error: Kind) -> Any:
    """Return the value of a pickle: plain values, dtypes, and a `Record` for every object of an allowed class.

    Args:
        content: the pickle.
        classes: names it may ask for.
        source: file, for the error.
        error: class of the error to raise.

    Raises:
        V2PEError: of class `error`: it asks for anything else, or is damaged.
    """
    # New classes every time: a pickle can set attributes of a class it names.
    found = {name: type(name[1], (Record,), {}) for name in classes}
    return _load(content, {**found, **DTYPES, ("torch", "Size"): tuple}, source, error, None)


def write_pickle(value: Any, stream: BinaryIO) -> None:
    """Write a pickle of our own making, for other programs to read."""
    pickle.dump(value, stream)


@dataclass(frozen=True)
class PlacedTensor:
    """Where the values of a tensor lie in an archive, one behind the other."""

    begin: int
    """First byte."""
    dtype: torch.dtype
    shape: tuple[int, ...]


def load_archive(content: memoryview, source: str, error: Kind, begins: list[int] | None = None) -> Any:
    """Return what `torch.save` wrote: plain values and tensors; nothing else is known.

    Args:
        content: the archive; tensors are views of it, so it has to stay as it is.
        source: file, for the error.
        error: class of the error to raise.
        begins: where given, it takes the first byte of every tensor's data, and the tensors hold no values.

    Raises:
        V2PEError: of class `error`: no archive, damaged, compressed, or it asks for another class.
    """
    if bytes(content[:4]) != b"PK\x03\x04":
        raise error(f"{source}: damaged, or a pickle where a zip belongs")
    try:
        with zipfile.ZipFile(_Window(content)) as archive:
            return _read_archive(archive, content, source, error, begins)
    except error:
        raise
    except Exception as problem:  # a damaged zip can raise anything
        raise error(f"{source}: damaged: {type(problem).__name__}: {printable(problem)[:200]}") from problem


def locate_tensor(content: memoryview, source: str, error: Kind) -> PlacedTensor | None:
    """Return where in an archive of `torch.save` the values of its one tensor lie; they are not read.

    Args:
        content: the archive.
        source: file, for the error.
        error: class of the error to raise.

    Returns:
        None where the archive holds anything but one tensor whose values lie in their order, without holes.

    Raises:
        V2PEError: as `load_archive`.
    """
    begins: list[int] = []
    value = load_archive(content, source, error, begins)
    if not isinstance(value, Tensor) or len(begins) != 1 or not value.is_contiguous():
        return None
    return PlacedTensor(begins[0] + int(value.storage_offset()) * value.itemsize, value.dtype, tuple(value.shape))


def _read_archive(
    archive: zipfile.ZipFile, content: memoryview, source: str, error: Kind, begins: list[int] | None
) -> Any:
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise error(f"{source}: refused: {printable(entry.filename)[:80]!r} is compressed or encrypted")
        if entry.filename in entries:
            raise error(f"{source}: refused: two records are called {printable(entry.filename)[:80]!r}")
        entries[entry.filename] = entry
    pickles = [name for name in entries if name.lower().endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].rpartition("/")[2] != "data.pkl":
        shown = [printable(name)[:80] for name in pickles[:4]]
        raise error(f"{source}: refused: expected one data.pkl, found {shown}")
    prefix = pickles[0].removesuffix("data.pkl")
    if (order := entries.get(f"{prefix}byteorder")) is not None and bytes(_bytes(order, content)) != b"little":
        raise error(f"{source}: written on a machine of another byte order")

    def storage(pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise error(f"{source}: damaged: a reference that is no tensor's data")
        _, dtype, key, _, count = pid
        if not isinstance(key, str):
            raise error(f"{source}: damaged: data whose name is no text")
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None or not isinstance(count, int) or count < 0 or count * dtype.itemsize != entry.file_size:
            raise error(f"{source}: damaged: data {printable(key)[:40]!r} is missing or of another size than stated")
        data = _bytes(entry, content)
        if begins is None:
            return _tensor(data, dtype)
        begins.append(_begin(entry, content))
        return torch.empty(count, dtype=dtype, device="meta")

    def tensor(flat: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        if not whole or not isinstance(flat, Tensor) or len(size) != len(stride):
            raise error(f"{source}: damaged: the description of a tensor")
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= flat.numel():
            raise error(f"{source}: damaged: a tensor of shape {list(size)} in {flat.numel()} values")
        return flat.as_strided(size, stride, offset)

    found: dict[Name, Any] = {**_STORAGES, **DTYPES, ("torch", "Size"): tuple, _TENSOR: tensor}
    found[_ORDERED] = lambda: collections.OrderedDict()  # its items come one by one
    described = _bytes(entries[pickles[0]], content)
    if len(described) > LARGEST_RECORD:
        raise error(f"{source}: refused: a description of {len(described)} bytes")
    value = _load(bytes(described), found, f"{source}: data.pkl", error, storage)
    if not _is_small(value):
        raise error(f"{source}: data.pkl: refused: nested deeper than {DEEPEST}, or more than {MOST_VALUES} values")
    return value


def _is_small(value: Any) -> bool:
    """Tell whether a value, written out, has an end: a few tuples, each twice in the next, would fill any memory."""
    level, count = [value], 0
    for _ in range(DEEPEST):
        level = [one for one in level if isinstance(one, (dict, list, tuple, set, frozenset))]
        count += sum(map(len, level))
        if not level or count > MOST_VALUES:
            return not level
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return not level


def _begin(entry: zipfile.ZipInfo, content: memoryview) -> int:
    """Return the first byte of an entry's content."""
    header = entry.header_offset
    if bytes(content[header : header + 4]) != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no record at byte {header}")
    name, extra = (int.from_bytes(content[header + at : header + at + 2], "little") for at in (26, 28))
    return header + 30 + name + extra


def _bytes(entry: zipfile.ZipInfo, content: memoryview) -> memoryview:
    """Return the bytes of an entry that is not compressed."""
    begin = _begin(entry, content)
    if begin + entry.file_size > len(content):
        raise zipfile.BadZipFile(f"a record of {entry.file_size} bytes does not fit")
    return content[begin : begin + entry.file_size]


def _tensor(data: memoryview, dtype: torch.dtype) -> Tensor:
    """Return bytes as a flat tensor; a copy where they do not begin at a multiple of an element's size."""
    if not len(data):
        return torch.empty(0, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)


def _load(
    content: bytes, found: Mapping[Name, Any], source: str, error: Kind, storage: Callable[[Any], Any] | None
) -> Any:
    if len(content) > LARGEST_PICKLE:
        raise error(f"{source}: a pickle of {len(content)} bytes, at most {LARGEST_PICKLE} are read")
    try:
        return _Unpickler(io.BytesIO(content), found, source, error, storage).load()
    except error:
        raise
    except Exception as problem:  # a damaged pickle can raise anything
        raise error(f"{source}: damaged: {type(problem).__name__}: {printable(problem)[:200]}") from problem


class _Window(io.RawIOBase):
    """Some bytes as a file that can be read and searched, without a copy of them."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._place = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._content)}[whence]
        if base + offset < 0:
            raise OSError("a place before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        part = self._content[self._place : self._place + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)
