"""The `torch_dist` format: tensors in shards, files of shards one after the other, a description of what lies where.

These are Megatron-Core's own files, written and read by us alone: one tensor at a time and without a process group for
a converter (`TorchDistWriter`, `TorchDistReader`), many for a model on a launched world (`sharded`).
Every shard gets a checksum while it is written, and is compared with it when it is read. Nothing is unpickled but by
`foreign.pickles`: neither PyTorch nor Megatron-Core ever loads a byte of a checkpoint.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle  # written, never read
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_v2pe.checkpoint.checksums import Checksums, FileSum, ShardSum, SummedStream, digest_of
from megatron_v2pe.checkpoint.folder import COMMON, MEGATRON_CONFIG, METADATA
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_name, read_bytes
from megatron_v2pe.foreign.pickles import Name, Record, load_archive, unpickle

_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_DESCRIPTION_CLASSES: frozenset[Name] = frozenset(
    [
        ("torch.serialization", "_get_layout"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
    ]
    + [
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ]
    + [
        ("torch.distributed.checkpoint.planner", name)
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    ]
)


@dataclass(frozen=True)
class Shard:
    """A part of a tensor, and where it lies."""

    begin: tuple[int, ...]
    """Index of its first element in the whole tensor, per axis."""
    sizes: tuple[int, ...]
    file: str
    """Name of a file of the folder."""
    offset: int
    """First byte in the file."""
    length: int
    """Bytes in the file: an archive of `torch.save`."""
    digest: str = ""
    """Its checksum, where one is known."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint."""

    dtype: torch.dtype
    size: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclass
class Written:
    """What a writer has written: shards by tensor, with type and shape of the whole; sizes of its files."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, dtype: torch.dtype, size: tuple[int, ...], shard: Shard) -> None:
        """Add a shard of a tensor."""
        known = self.tensors.get(key)
        assert known is None or (known.dtype, known.size) == (dtype, size), key
        self.tensors[key] = StoredTensor(dtype, size, (*(known.shards if known else ()), shard))

    def merge(self, other: Written) -> None:
        """Add what another writer has written."""
        for key, tensor in other.tensors.items():
            for shard in tensor.shards:
                self.add(key, tensor.dtype, tensor.size, shard)
        self.sizes |= other.sizes

    def file_sums(self) -> dict[str, FileSum]:
        """Return the checksums of the data files."""
        shards: dict[str, list[ShardSum]] = {name: [] for name in self.sizes}
        for tensor in self.tensors.values():
            for shard in tensor.shards:
                shards[shard.file].append(ShardSum(shard.offset, shard.length, shard.digest))
        return {name: FileSum(size, None, tuple(shards[name])) for name, size in self.sizes.items()}


class TorchDistWriter:
    """Append tensors to a new data file; use as a context manager."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Open a data file in `folder`, which exists.

        Args:
            folder: of the checkpoint.
            rank: of the process that writes the file.
        """
        self._name = f"__{rank}_0.distcp"
        self._file = (folder / self._name).open("wb")
        self._stream = SummedStream(self._file)
        self.written = Written()

    def __enter__(self) -> TorchDistWriter:
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the data file; after no error it is on the disk."""
        try:
            if error[0] is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self.written.sizes[self._name] = self._stream.place
        finally:
            self._file.close()

    def add_rows(self, key: str, shape: Sequence[int], first_row: int, rows: Tensor) -> None:
        """Write rows `first_row ...` of tensor `key`, all other axes whole; arguments as of `add`."""
        self.add(key, tuple(shape), (first_row, *[0] * (rows.dim() - 1)), rows)

    def add(self, key: str, size: tuple[int, ...], begin: tuple[int, ...], values: Tensor) -> None:
        """Write a part of a tensor.

        Args:
            key: name in the checkpoint.
            size: shape of the whole tensor.
            begin: where the part begins in it, per axis.
            values: the part, on any device; as many axes as the whole.
        """
        values = values.detach().cpu().contiguous()
        if values.untyped_storage().nbytes() != values.numel() * values.itemsize:
            values = values.clone()  # torch.save writes a view with all it is a view of
        start, checksums = self._stream.place, torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # PyTorch does not look at them, and they take most of the time
        try:
            torch.save(values, self._stream)  # type: ignore[arg-type]
        finally:
            torch.serialization.set_crc32_options(checksums)
        length, digest = self._stream.place - start, self._stream.take()
        shard = Shard(tuple(begin), tuple(values.shape), self._name, start, length, digest)
        self.written.add(key, values.dtype, tuple(size), shard)


def write_description(folder: Path, written: Written, common: Any) -> None:
    """Write what Megatron-Core reads beside the data files, the folder can be loaded after this.

    Args:
        folder: of the checkpoint.
        written: by all writers.
        common: plain values and tensors that are the same on every rank.
    """
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, tensor in written.tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(shard.begin), torch.Size(shard.sizes)) for shard in tensor.shards]
        entries[key] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.size), chunks)
        for number, shard in enumerate(tensor.shards):
            index = MetadataIndex(key, torch.Size(shard.begin), number)
            places[index] = _StorageInfo(shard.file, shard.offset, shard.length)
    metadata = Metadata(entries, storage_data=places, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    with (folder / METADATA).open("wb") as stream:
        pickle.dump(metadata, stream)
        stream.flush()
        os.fsync(stream.fileno())
    torch.save(common, folder / COMMON)
    (folder / MEGATRON_CONFIG).write_text(json.dumps(_BACKENDS), encoding="utf-8")


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint folder and where their shards lie, of `.metadata` read without trusting it.

    Objects that are no tensors (`_extra_state` of linear layers in checkpoints of other programs) are left out: they
    are pickles, and nothing here needs them.

    Raises:
        CheckpointError: it asks for a class that is not on the list, is damaged, or describes something impossible.
    """
    path = folder / METADATA
    source = str(path)
    content = unpickle(read_bytes(path, CheckpointError, 1 << 30), _DESCRIPTION_CLASSES, source, CheckpointError)
    if not isinstance(content, Record) or type(content).__name__ != "Metadata":
        kind = type(content).__name__
        raise CheckpointError(f"{source}: holds a {kind}, expected checkpoint metadata")
    entries, places = content.fields.get("state_dict_metadata"), content.fields.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(places, dict):
        raise CheckpointError(f"{source}: damaged: the list of tensors or of their places is missing")
    found = _places(places, source)
    return {
        key: _stored(key, entry, found, source)
        for key, entry in entries.items()
        if not (isinstance(entry, Record) and type(entry).__name__ == "BytesStorageMetadata")
    }


def read_common(folder: Path) -> Any:
    """Return the plain values and tensors of `common.pt`, read without trusting it.

    Raises:
        CheckpointError: it asks for a class that is not on the list, or is damaged.
    """
    path = folder / COMMON
    content = bytearray(read_bytes(path, CheckpointError))
    return load_archive(memoryview(content), str(path), CheckpointError)


class TorchDistReader:
    """Read parts of tensors of a vetted checkpoint folder, whatever layout wrote it."""

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor], checksums: Checksums | None = None) -> None:
        """Remember the folder and what `vet_checkpoint` found in it.

        Args:
            folder: of the checkpoint.
            tensors: its tensors.
            checksums: compared with what is read; None: nothing is compared.
        """
        self._folder, self.tensors = folder, tensors
        self._checksums = checksums
        self._sums: dict[str, dict[tuple[int, int], str]] = {}
        self._files: dict[str, memoryview] = {}
        self._checked: set[tuple[str, int]] = set()

    def read_rows(self, key: str, first_row: int, rows: int) -> Tensor:
        """Read rows `first_row ... first_row + rows` of a tensor, all other axes whole; see `read`."""
        size = self.tensors[key].size
        return self.read(key, (first_row, *[0] * (len(size) - 1)), (rows, *size[1:]))

    def read(self, key: str, begin: tuple[int, ...], sizes: tuple[int, ...], target: Tensor | None = None) -> Tensor:
        """Read a part of a tensor.

        Args:
            key: name in the checkpoint.
            begin: where the part begins, per axis.
            sizes: its shape.
            target: where it goes, of that shape, any type and device; new memory or a view of the file by default.

        Returns:
            The target, or a tensor that is not to be written to.

        Raises:
            CheckpointError: the shards do not cover the part, or one is damaged.
        """
        entry = self.tensors[key]
        if target is None:
            for shard in entry.shards:
                if shard.begin == begin and shard.sizes == sizes:
                    return self._shard(key, entry, shard)
            target = torch.empty(sizes, dtype=entry.dtype)
        covered = 0
        for shard in entry.shards:
            overlap = _overlap(begin, sizes, shard)
            if overlap is None:
                continue
            source, place = overlap
            piece = self._shard(key, entry, shard)[source]
            target[place].copy_(piece)
            covered += piece.numel()
        if covered != target.numel():
            raise CheckpointError(f"{self._folder}: {key}: shards hold {covered} of {target.numel()} values")
        return target

    def _shard(self, key: str, entry: StoredTensor, shard: Shard) -> Tensor:
        """Return a shard as a view of its file, compared with its checksum the first time."""
        where = f"{self._folder / shard.file}: {key}"
        content = self._file(shard.file)[shard.offset : shard.offset + shard.length]
        if len(content) != shard.length:
            raise CheckpointError(f"{where}: damaged: {len(content)} of {shard.length} bytes")
        if self._checksums is not None and (shard.file, shard.offset) not in self._checked:
            known = self._sums.setdefault(shard.file, self._checksums.shards_of(shard.file))
            expected = known.get((shard.offset, shard.length))
            if (found := digest_of(content)) != expected:
                raise CheckpointError(
                    f"{where}: damaged: the shard at byte {shard.offset} has the checksum {found}, {expected} when it "
                    "was written; copy the checkpoint again, or go on from an older one"
                )
            self._checked.add((shard.file, shard.offset))
        tensor = load_archive(content, f"{where}: damaged", CheckpointError)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shard.sizes or tensor.dtype != entry.dtype:
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{where}: holds {found}, expected a tensor {entry.dtype} {list(shard.sizes)}")
        return tensor

    def _file(self, name: str) -> memoryview:
        if name not in self._files:
            path = self._folder / name
            try:
                with path.open("rb") as stream:
                    # Copied on writing, so that views of it are ordinary tensors; the file itself is never changed.
                    self._files[name] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return self._files[name]


def _places(places: Mapping[Any, Any], source: str) -> dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]:
    """Return file, first byte and length of every shard by key and begin, checked."""
    found: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for index, info in places.items():
        if not isinstance(info, Record) or not isinstance(index, Record):
            kind = type(info if isinstance(index, Record) else index).__name__
            raise CheckpointError(f"{source}: damaged: the place of a tensor is a {kind}")
        key, begin = index.fields.get("fqn"), index.fields.get("offset")
        if not isinstance(key, str):
            raise CheckpointError(f"{source}: damaged: the place of a tensor without a name")
        name = check_name(info.fields.get("relative_path"), f"{source}: {key}", CheckpointError)
        offset: Any = info.fields.get("offset")
        length: Any = info.fields.get("length")
        if not (_whole(offset) and _whole(length)) or info.fields.get("transform_descriptors"):
            raise CheckpointError(f"{source}: refused: {key} is said to be at {offset!r}, {length!r} bytes, of {name}")
        if begin is not None:
            found[key, _numbers(begin, f"{source}: {key}")] = (name, offset, length)
    return found


def _stored(
    key: Any, entry: Any, places: Mapping[tuple[str, tuple[int, ...]], tuple[str, int, int]], source: str
) -> StoredTensor:
    if not isinstance(key, str) or not isinstance(entry, Record):
        raise CheckpointError(f"{source}: damaged: a tensor is a {type(entry).__name__}")
    where = f"{source}: {key}"
    properties, chunks = entry.fields.get("properties"), entry.fields.get("chunks")
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if isinstance(state, dict):
        dtype = state.get("dtype")
    if not isinstance(dtype, torch.dtype) or not isinstance(chunks, list):
        raise CheckpointError(f"{where}: damaged: its type or its shards are missing")
    size = _numbers(entry.fields.get("size"), where)
    shards: list[Shard] = []
    for chunk in chunks:
        described = chunk.fields if isinstance(chunk, Record) else {}
        begin, sizes = (_numbers(described.get(name), where) for name in ("offsets", "sizes"))
        inside = len(begin) == len(sizes) == len(size)
        if not inside or any(low + extent > whole for low, extent, whole in zip(begin, sizes, size, strict=True)):
            raise CheckpointError(f"{where}: damaged: a shard of {list(sizes)} at {list(begin)} of {list(size)}")
        place = places.get((key, begin))
        if place is None:
            raise CheckpointError(f"{where}: damaged: the shard at {list(begin)} has no place")
        shards.append(Shard(begin, sizes, *place))
    return StoredTensor(dtype, size, tuple(shards))


def _numbers(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(_whole(number) for number in value):
        raise CheckpointError(f"{where}: damaged: a shape that is none")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _overlap(
    begin: tuple[int, ...], size: tuple[int, ...], shard: Shard
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where a window and a shard meet, in the shard and in the window; None where they do not."""
    source, target = [], []
    for wanted, length, offset, extent in zip(begin, size, shard.begin, shard.sizes, strict=True):
        low, high = max(wanted, offset), min(wanted + length, offset + extent)
        if low >= high:
            return None
        source.append(slice(low - offset, high - offset))
        target.append(slice(low - wanted, high - wanted))
    return tuple(source), tuple(target)
