"""The weights of an HF folder cut into files anew: shards of a chosen size, with an index."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from megatron_v2pe.checkpoint.hf.folder import INDEX, SINGLE, FileLayout
from megatron_v2pe.checkpoint.hf.safetensors_io import header_of
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object

DEFAULT_SHARD = "5GB"
"""As transformers took for years: files that a hub and any file system take."""
Tensor3 = tuple[str, Sequence[int], torch.dtype]
"""Name, shape and type of a tensor."""


def cut(tensors: Iterable[Tensor3], largest: int) -> FileLayout:
    """Return files for tensors, in their order; each as full as `largest` allows, a longer tensor in one of its own.

    Args:
        tensors: name, shape and type of each.
        largest: bytes of tensors in a file.
    """
    parts: list[list[Tensor3]] = [[]]
    size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor[1]) * tensor[2].itemsize
        if parts[-1] and size + nbytes > largest:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += nbytes
    if len(parts) == 1:
        return FileLayout(((SINGLE, header_of(parts[0])),))
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    return FileLayout(tuple((name, header_of(part)) for name, part in zip(names, parts, strict=True)))


def write_index(folder: Path, files: FileLayout) -> None:
    """Write the index of files that were cut anew; a single file has none."""
    (folder / INDEX).unlink(missing_ok=True)
    if len(files.shards) == 1 and files.shards[0][0] == SINGLE:
        return
    where = {place.name: file for file, header in files.shards for place in header.tensors}
    total = sum(place.nbytes for place in files.places().values())
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def correct_total(folder: Path, files: FileLayout) -> None:
    """Write the size of the weights in their new type into an index that stays as it is otherwise; none is made."""
    path = folder / INDEX
    if not path.is_file():
        return
    index = read_json_object(path, CheckpointError, 1 << 26, unique=True)
    total = sum(place.nbytes for place in files.places().values())
    metadata = Fields(index, printable(path), CheckpointError).get("metadata", dict, {})
    index["metadata"] = {**metadata, "total_size": total}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
