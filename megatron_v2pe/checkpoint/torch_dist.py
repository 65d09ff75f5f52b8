"""The `torch_dist` format tensor by tensor: written and read without a process group and without holding a model.

Megatron-Core saves and loads whole models on a launched world. A converter wants one tensor at a time, in one process:
the same files, PyTorch's own data structures, nothing else in memory.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_v2pe.checkpoint.folder import COMMON, MEGATRON_CONFIG, METADATA
from megatron_v2pe.errors import CheckpointError

_DATA_FILE = "__0_0.distcp"
_BACKENDS = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class TorchDistWriter:
    """Append tensors to a new checkpoint folder; use as a context manager, then call `finish`."""

    def __init__(self, folder: Path) -> None:
        """Open the data file in `folder`, which exists."""
        self._folder = folder
        self._stream = (folder / _DATA_FILE).open("wb")
        self._entries: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def __enter__(self) -> TorchDistWriter:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the data file."""
        self._stream.close()

    def add_rows(self, key: str, shape: Sequence[int], first_row: int, rows: Tensor) -> None:
        """Write rows `first_row ...` of tensor `key`, all other axes whole.

        Args:
            key: name in the checkpoint.
            shape: shape of the whole tensor.
            first_row: where on axis 0 the rows belong.
            rows: the values, contiguous.
        """
        offset = torch.Size([first_row, *[0] * (rows.dim() - 1)])
        properties = TensorProperties(dtype=rows.dtype)
        entry = self._entries.setdefault(key, TensorStorageMetadata(properties, torch.Size(shape), []))
        assert entry.size == torch.Size(shape) and entry.properties.dtype == rows.dtype, key
        index = MetadataIndex(key, offset, len(entry.chunks))
        entry.chunks.append(ChunkStorageMetadata(offset, rows.shape))
        self._places[index] = self._write(rows)

    def add_object(self, key: str, content: Any) -> None:
        """Write a plain Python value as Megatron-Core stores an unsharded object."""
        name = f"{key}/shard_0_1"
        self._entries[name] = BytesStorageMetadata()
        self._places[MetadataIndex(name)] = self._write([content])

    def finish(self) -> None:
        """Write what describes the data; the folder can be loaded after this."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        metadata = Metadata(
            state_dict_metadata=self._entries,
            storage_data=self._places,
            storage_meta=StorageMeta(),
            version=CURRENT_DCP_VERSION,
        )
        with (self._folder / METADATA).open("wb") as stream:
            pickle.dump(metadata, stream)
        torch.save({}, self._folder / COMMON)
        (self._folder / MEGATRON_CONFIG).write_text(json.dumps(_BACKENDS))

    def _write(self, content: Any) -> _StorageInfo:
        start, checksums = self._stream.tell(), torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # PyTorch does not look at them, and they take most of the time
        try:
            torch.save(content, self._stream)
        finally:
            torch.serialization.set_crc32_options(checksums)
        return _StorageInfo(_DATA_FILE, start, self._stream.tell() - start)


class TorchDistReader:
    """Read parts of tensors of a vetted checkpoint folder, whatever layout wrote it."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        """Remember the folder and what `vet_checkpoint` returned for it."""
        self._folder = folder
        self._places: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def read_rows(self, key: str, first_row: int, rows: int) -> Tensor:
        """Read rows `first_row ... first_row + rows` of a tensor, all other axes whole.

        Raises:
            CheckpointError: the shards do not cover these rows, or one is damaged.
        """
        entry = self.tensors[key]
        begin = (first_row, *[0] * (len(entry.size) - 1))
        size = (rows, *entry.size[1:])
        if (index := MetadataIndex(key, begin)) in self._places and any(
            tuple(chunk.offsets) == begin and tuple(chunk.sizes) == size for chunk in entry.chunks
        ):
            return self._chunk(index, size)
        result, covered = torch.empty(size, dtype=entry.properties.dtype), 0
        for chunk in entry.chunks:
            overlap = _overlap(begin, size, chunk)
            if overlap is None:
                continue
            source, target = overlap
            piece = self._chunk(MetadataIndex(key, chunk.offsets), tuple(chunk.sizes))[source]
            result[target].copy_(piece)
            covered += piece.numel()
        if covered != result.numel():
            raise CheckpointError(f"{self._folder}: {key}: shards hold {covered} of {result.numel()} values")
        return result

    def _chunk(self, index: MetadataIndex, sizes: tuple[int, ...]) -> Tensor:
        info = self._places.get(index)
        if info is None:
            raise CheckpointError(f"{self._folder}: {index.fqn}: the shard at {tuple(index.offset or ())} has no place")
        path = self._folder / info.relative_path
        try:
            with path.open("rb") as stream:
                view = io.BufferedReader(_create_file_view(stream, info.offset, info.length))  # type: ignore[arg-type]
                tensor = torch.load(view, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
            raise CheckpointError(f"{path}: {index.fqn}: damaged: {error}") from error
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != sizes:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{path}: {index.fqn}: holds {found}, expected a tensor {sizes}")
        return tensor


def _overlap(
    begin: tuple[int, ...], size: tuple[int, ...], chunk: ChunkStorageMetadata
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where a window and a chunk meet, in the chunk and in the window; None where they do not."""
    source, target = [], []
    for wanted, length, offset, extent in zip(begin, size, chunk.offsets, chunk.sizes, strict=True):
        low, high = max(wanted, offset), min(wanted + length, offset + extent)
        if low >= high:
            return None
        source.append(slice(low - offset, high - offset))
        target.append(slice(low - wanted, high - wanted))
    return tuple(source), tuple(target)
