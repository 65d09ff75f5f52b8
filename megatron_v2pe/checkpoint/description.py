"""What a `torch_dist` checkpoint says of itself: its tensors, in which shards they are and where those lie.

`.metadata` and `common.pt` are in the form PyTorch and Megatron-Core give them, so that their tools read them. Here
they are written, and read by `foreign.pickles` without running what they ask for; what they say is checked.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint.checksums import FileSum, ShardSum
from megatron_v2pe.checkpoint.folder import COMMON, MEGATRON_CONFIG, METADATA
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_name, read_bytes
from megatron_v2pe.foreign.pickles import Name, Record, load_archive, unpickle, write_pickle

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


def import_for_writing() -> None:
    """Import what `write_description` needs; it takes a third as long as PyTorch itself, and whoever reads has no use.

    A conversion calls this in a thread while it writes tensors.
    """
    import_module("torch.distributed.checkpoint.filesystem")


def write_description(folder: Path, written: Written, common: Any) -> None:
    """Write what Megatron-Core reads beside the data files, the folder can be loaded after this.

    Args:
        folder: of the checkpoint.
        written: by all writers.
        common: plain values and tensors that are the same on every rank.
    """
    from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        StorageMeta,
        TensorProperties,
        TensorStorageMetadata,
    )

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
        write_pickle(metadata, stream)
        stream.flush()
        os.fsync(stream.fileno())
    archive = io.BytesIO()
    torch.save(common, archive)  # not to the file: of a full disk PyTorch only says "unexpected pos"
    (folder / COMMON).write_bytes(archive.getvalue())
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
            shown = [value if isinstance(value, (int, str)) else type(value).__name__ for value in (offset, length)]
            raise CheckpointError(f"{source}: refused: {key} is said to be at {shown[0]}, {shown[1]} bytes, of {name}")
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
