"""Is this checkpoint folder whole, and safe to read?

PyTorch describes the tensors of a `torch_dist` checkpoint in `.metadata`, a pickle, and Megatron-Core keeps what is not
a tensor in `common.pt`, a zip with a pickle inside. A pickle can run any code when it is loaded, so both are read here
first by an unpickler that knows a short list of harmless classes and refuses everything else.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.filesystem as dcp_filesystem
import torch.distributed.checkpoint.metadata as dcp_metadata
from torch.distributed.checkpoint.metadata import Metadata

from megatron_v2pe.checkpoint.folder import COMMON, DESCRIPTION, FORMAT_VERSION, MEGATRON_CONFIG, METADATA
from megatron_v2pe.errors import CheckpointError

_DTYPES = {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_METADATA_CLASSES = _DTYPES | {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "BytesStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    *(("torch.distributed.checkpoint.planner", name) for name in (
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData",
    )),
}  # fmt: skip
_COMMON_CLASSES = _DTYPES | {
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", name) for name in vars(torch) if name.endswith("Storage")),
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Load a pickle made of plain values and the classes of an allow-list."""

    def __init__(self, stream: io.BufferedIOBase, allowed: set[tuple[str, str]], source: str) -> None:
        super().__init__(stream)
        self._allowed = allowed
        self._source = source

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name on the list; nothing else is even imported. Tensors are not built."""
        if (module, name) not in self._allowed:
            raise CheckpointError(
                f"{self._source}: refused: it asks for {module}.{name}, which no checkpoint needs and which could run "
                "code; the file is damaged or malicious"
            )
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *description: None
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Stand in for the data of a tensor, which is not looked at."""
        return None


def vet_checkpoint(folder: Path) -> Metadata:
    """Check that a checkpoint folder is complete and safe, before PyTorch or Megatron-Core reads it.

    Returns:
        PyTorch's description of the tensors, read safely.

    Raises:
        CheckpointError: something is missing, too short, of a later format or refused; the file is named.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    for name in (METADATA, MEGATRON_CONFIG, COMMON, DESCRIPTION):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; the checkpoint was not finished or not copied whole")
    _vet_description(folder / DESCRIPTION)
    _vet_backend(folder / MEGATRON_CONFIG)
    _vet_common(folder / COMMON)
    metadata = read_metadata(folder / METADATA)
    _vet_data_files(folder, metadata)
    return metadata


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a checkpoint.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: damaged: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: holds a {type(content).__name__}, expected an object")
    return content


def read_metadata(path: Path) -> Metadata:
    """Read `.metadata` without trusting it.

    Raises:
        CheckpointError: it asks for a class that is not on the list, is damaged, or is something else.
    """
    with path.open("rb") as stream:
        metadata = _unpickle(stream, _METADATA_CLASSES, str(path))
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{path}: holds a {type(metadata).__name__}, expected checkpoint metadata")
    if not isinstance(metadata.state_dict_metadata, dict) or not isinstance(metadata.storage_data, dict):
        raise CheckpointError(f"{path}: damaged: the list of tensors or of their places is missing")
    return metadata


def _unpickle(stream: Any, allowed: set[tuple[str, str]], source: str) -> Any:
    try:
        return _RestrictedUnpickler(stream, allowed, source).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{source}: damaged: {type(error).__name__}: {error}") from error


def _vet_description(path: Path) -> None:
    version = read_description(path).get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version!r}, this program reads up to {FORMAT_VERSION}")


def _vet_backend(path: Path) -> None:
    config = read_description(path)
    found = (config.get("sharded_backend"), config.get("common_backend", "torch"))
    if found != ("torch_dist", "torch"):
        raise CheckpointError(f"{path}: storage {found[0]!r} with {found[1]!r}, expected 'torch_dist' with 'torch'")


def _vet_common(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
            if [name.rpartition("/")[2] for name in pickles] != ["data.pkl"]:
                raise CheckpointError(f"{path}: refused: expected one data.pkl, found {pickles}")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged, or a pickle where a zip belongs: {error}") from error
    _unpickle(io.BytesIO(content), _COMMON_CLASSES, f"{path}: data.pkl")


def _vet_data_files(folder: Path, metadata: Metadata) -> None:
    """Compare the data files with the places that the metadata names."""
    needed: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        if not isinstance(info, dcp_filesystem._StorageInfo) or not isinstance(index, dcp_metadata.MetadataIndex):
            raise CheckpointError(f"{folder / METADATA}: damaged: the place of a tensor is a {type(info).__name__}")
        name, end = info.relative_path, info.offset + info.length
        if Path(name).name != name or info.offset < 0 or info.length < 0:
            raise CheckpointError(f"{folder / METADATA}: refused: {index.fqn} is said to be in {name!r}")
        needed[name] = max(needed.get(name, 0), end)
    for name, size in needed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; the checkpoint was not finished or not copied whole")
        if (found := path.stat().st_size) < size:
            raise CheckpointError(f"{path}: truncated: {found} bytes, the checkpoint needs {size}")
