"""Files that run code when they are loaded carelessly, and every way a checkpoint is loaded; for tests alone.

Every payload makes a file. `attempts` loads a folder in each way the program has and says what happened.
"""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 (payloads are made here)
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_v2pe.errors import V2PEError
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.settings import StridePolicy


class Malicious:
    """Unpickled, this runs a call."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Note the call."""
        self._call = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Have the call made in place of an object."""
        return self._call


def payloads(victim: Path) -> dict[str, bytes]:
    """Return files by kind, each of which makes `victim` when it is unpickled."""
    call = Malicious(os.mkdir, str(victim))
    code = Malicious(eval, f"__import__('os').mkdir({str(victim)!r})")
    pickled = pickle.dumps(call)
    hidden = io.BytesIO()  # a zip behind a raw pickle: read from its end it is a zip, from its beginning a pickle
    hidden.write(pickled)
    with zipfile.ZipFile(hidden, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a/data.PKL", pickled)
        archive.writestr("b/data.pkl", pickle.dumps({}))
    objects = io.BytesIO()
    np.save(objects, np.array([call], dtype=object), allow_pickle=True)
    old = io.BytesIO()
    torch.save(call, old, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickled,
        "pickle protocol 0": pickle.dumps(code, protocol=0),
        "torch archive": archive_of(call),
        "torch archive of a list": archive_of([torch.ones(2), {"a": code}]),
        "torch, the old format": old.getvalue(),
        "zip behind a pickle": hidden.getvalue(),
        "two pickles in a zip": twice.getvalue(),
        "numpy objects": objects.getvalue(),
    }


def archive_of(content: Any) -> bytes:
    """Return what `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def with_objects(folder: Path, payload: bytes) -> None:
    """Turn a converted folder into one of format 1 with objects beside its linear layers, each of them a payload.

    It is the form Megatron-Core writes: entries of a data file, named in `.metadata`, which PyTorch would unpickle.
    """
    import json

    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    metadata = pickle.loads((folder / ".metadata").read_bytes())
    data = next(folder.glob("*.distcp"))
    linears = [key for key in metadata.state_dict_metadata if key.endswith("weight") and ".linear_" in key]
    with data.open("ab") as stream:
        for key in linears:
            name = f"{key.removesuffix('weight')}_extra_state/shard_0_1"
            metadata.state_dict_metadata[name] = BytesStorageMetadata()
            metadata.storage_data[MetadataIndex(name)] = _StorageInfo(data.name, stream.tell(), len(payload))
            stream.write(payload)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "checksums.json").unlink(missing_ok=True)
    description = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**description, "format_version": 1}))


def load_in_every_way(folders: list[str], hf_config: dict[str, Any]) -> list[dict[str, str]]:
    """Load checkpoint folders as training, resuming, asking and exporting do; for use inside a `WorkerPool`.

    Returns:
        For each folder, by way: `loaded`, `refused: MESSAGE`, or `ESCAPED: TYPE: MESSAGE` for any other exception.
    """
    from megatron_v2pe.workshop.built_model import built

    options = ModelOptions(params_dtype=torch.float32)
    with built(hf_config, ParallelConfig(), options, StridePolicy("default"), 5) as model:
        return [dict(_ways(Path(folder), model)) for folder in folders]


def _ways(folder: Path, model: Any) -> Iterator[tuple[str, str]]:
    from megatron_v2pe.checkpoint import store
    from megatron_v2pe.checkpoint.hf.api import mcore_to_hf
    from megatron_v2pe.checkpoint.vet import verify_side_files
    from megatron_v2pe.data.tokenizer import Tokenizer
    from megatron_v2pe.models.config import InternVLConfig

    target = folder.with_name(f"{folder.name}.exported")
    ways: dict[str, Callable[[], Any]] = {
        "configuration": lambda: InternVLConfig.from_folder(folder / "hf"),
        "tokenizer": lambda: Tokenizer.from_folder(folder / "hf"),
        "small files": lambda: verify_side_files(folder),
        "weights": lambda: store.load_model(folder, model),
        "weights, unchecked": lambda: store.load_model(folder, model, verify=False),
        "state": lambda: store.read_training_state(folder),
        "export": lambda: mcore_to_hf(folder, target, overwrite=True),
        "export, unchecked": lambda: mcore_to_hf(folder, target, overwrite=True, verify=False),
    }
    for name, way in ways.items():
        try:
            way()
        except V2PEError as error:
            yield name, f"refused: {error}"
        except Exception as error:
            yield name, f"ESCAPED: {type(error).__name__}: {error}"
        else:
            yield name, "loaded"
