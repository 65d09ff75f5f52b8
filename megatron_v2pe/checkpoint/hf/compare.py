"""Two checkpoints of any kind and layout compared tensor by tensor, and one with its own manifest; a block at a time.

Both are read as rows of Megatron-Core tensors, and named as in the folders that OpenGVLab publishes: so an original
folder, a native one, and a checkpoint of a run in any parallel layout are compared without converting any. Padding (of
a vocabulary, of heads) is no part of a tensor. A head that is tied in one checkpoint and a tensor in the other is
compared with the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_v2pe.base.progress import Progress, byte_progress
from megatron_v2pe.checkpoint.hf.finite import Examination
from megatron_v2pe.checkpoint.hf.manifest import MANIFEST, TensorManifest, TensorSum
from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.open_source import OpenSource, open_hf, open_megatron
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.errors import CheckpointError

_BLOCK = 4 << 20
_EMBEDDING, _HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
"""Endings of the keys of the embedding and of the head, which may be one tensor."""


@dataclass(frozen=True)
class Difference:
    """How a tensor of two checkpoints differs."""

    name: str
    what: str
    """In words: shapes, types or values."""
    absolute: float = 0.0
    """Largest difference of two values; 0 where only the types differ."""
    relative: float = 0.0
    """The largest difference divided by the tensor's largest value in either checkpoint."""

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.name}: {self.what}"


@dataclass
class Comparison:
    """What a comparison has found."""

    tensors: int = 0
    equal: int = 0
    """Tensors whose type and bytes are the same."""
    within: int = 0
    """Tensors that differ by no more than the tolerance, or in their type alone where there is one."""
    differing: list[Difference] = field(default_factory=list)
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether nothing differs by more than is allowed."""
        return not (self.differing or self.only_first or self.only_second)


def open_any(path: Path, verify: bool = True) -> OpenSource:
    """Open what a user names as a checkpoint: an HF folder in either layout, a Megatron folder, a run.

    Raises:
        ConfigError: no checkpoint, or an architecture that is not supported.
        CheckpointError: it is incomplete or damaged.
    """
    place = find_checkpoint(path, "checkpoint")
    return open_hf(place.folder) if place.is_hf else open_megatron(place.folder, verify)


def compare(first: OpenSource, second: OpenSource, tolerance: float | None = None) -> Comparison:
    """Compare the tensors of two checkpoints.

    Args:
        first: one of them; tensors have its names, those of the published layout.
        second: the other one.
        tolerance: None: type and bytes have to be the same. Otherwise a tensor may differ by so much of its largest
            value, and types may differ.

    Raises:
        CheckpointError: a checkpoint is damaged.
    """
    result = Comparison()
    pairs = list(_pairs(mapping_table(first.model), mapping_table(second.model), result))
    ours = HFTensors(first.rows, MappingTable(tuple(one for one, _ in pairs)))
    theirs = HFTensors(second.rows, MappingTable(tuple(other for _, other in pairs)))
    total = sum(math.prod(one.shape) * ours.dtype(one.name).itemsize for one, _ in pairs)
    with byte_progress(total, "compared") as progress:
        for mapping, _ in pairs:
            found = _compared(mapping, ours, theirs, progress)
            result.tensors += 1
            if found is None:
                result.equal += 1
            elif tolerance is not None and found.relative <= tolerance:
                result.within += 1
            else:
                result.differing.append(found)
    return result


def _pairs(
    first: MappingTable, second: MappingTable, result: Comparison
) -> Iterator[tuple[TensorMapping, TensorMapping]]:
    """Yield the tensors both have, under the first's names; the second says where it has them.

    Those that only one has, or that have two shapes, are noted in `result`.
    """
    in_first, in_second = ({row.key: row for row in table.tensors} for table in (first, second))
    rows = [*first.tensors, *(row for row in second.tensors if row.key not in in_first)]
    for row in rows:
        here, there = _place(row.key, in_first), _place(row.key, in_second)
        if here is None or there is None:
            (result.only_second if here is None else result.only_first).append(row.name)
        elif (ours := in_first[here].key_shape) != (theirs := in_second[there].key_shape):
            result.tensors += 1
            what = f"{here} has shape {list(ours)} and {list(theirs)}"
            result.differing.append(Difference(row.name, what, math.inf, math.inf))
        else:
            yield replace(row, key=here), replace(row, key=there)


def _place(key: str, table: Mapping[str, TensorMapping]) -> str | None:
    """Return the key under which a checkpoint holds a tensor: a tied head is the embedding."""
    if key in table:
        return key
    embedding = key.removesuffix(_HEAD) + _EMBEDDING
    return embedding if key.endswith(_HEAD) and embedding in table else None


def _compared(mapping: TensorMapping, ours: HFTensors, theirs: HFTensors, progress: Progress) -> Difference | None:
    """Compare the values of a tensor; None where type and bytes are the same."""
    name = mapping.name
    types = ours.dtype(name), theirs.dtype(name)
    widths = ours.row_bytes(name), theirs.row_bytes(name)
    worst, count, same_bytes = 0.0, 0, True
    step = max(1, _BLOCK // max(*widths, 1))
    buffers = [memoryview(bytearray(min(step, mapping.shape[0]) * width)) for width in widths]
    for first in range(0, mapping.shape[0], step):
        rows = min(step, mapping.shape[0] - first)
        blocks = [buffer[: rows * width] for buffer, width in zip(buffers, widths, strict=True)]
        for tensors, block in zip((ours, theirs), blocks, strict=True):
            tensors.read(name, first, block)
        progress.update(len(blocks[0]))
        if types[0] == types[1] and bytes_equal(*blocks):
            continue
        same_bytes = False
        a, b = (torch.frombuffer(block, dtype=dtype).double() for block, dtype in zip(blocks, types, strict=True))
        apart = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0).nan_to_num(math.inf, math.inf)
        count += int(apart.count_nonzero())
        worst = max(worst, float(apart.max()))
    if same_bytes:
        return None
    kinds = [str(dtype).removeprefix("torch.") for dtype in types]
    named = f"{kinds[0]} and {kinds[1]}, " if kinds[0] != kinds[1] else ""
    if not count:
        return Difference(name, f"{named}the same values" if named else "equal values in other bytes (-0 and 0, NaN)")
    largest = max(_largest(ours, mapping), _largest(theirs, mapping))
    relative = worst / largest if largest else math.inf
    total = math.prod(mapping.shape)
    what = f"{count} of {total} values differ, by {worst:.3g} at most, {relative:.3g} of the largest value"
    return Difference(name, named + what, worst, relative)


def _largest(tensors: HFTensors, mapping: TensorMapping) -> float:
    """Return the largest absolute value of a tensor that is a number."""
    name, largest = mapping.name, 0.0
    for first, rows in tensors.stretches(name, _BLOCK):
        block = memoryview(bytearray(rows * tensors.row_bytes(name)))
        tensors.read(name, first, block)
        values = torch.frombuffer(block, dtype=tensors.dtype(name)).float().nan_to_num(0.0, 0.0, 0.0)
        largest = max(largest, float(values.abs().max()))
    return largest


def bytes_equal(first: memoryview, second: memoryview) -> bool:
    """Tell whether two blocks of memory hold the same bytes."""
    return np.array_equal(np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8))


def check_manifest(source: OpenSource) -> int:
    """Compare every tensor of a checkpoint with its own manifest; return how many there are.

    Raises:
        CheckpointError: it has none, it lists other tensors, or a tensor is another one; the first is named, with both
            sums.
    """
    manifest = TensorManifest.read(source.folder)
    if manifest is None:
        raise CheckpointError(
            f"{source.where}: holds no {MANIFEST}; conversions write one, see docs/converting.md. To compare two "
            "checkpoints, name both"
        )
    names = source.table.by_name()
    manifest.check_names(names, source.where)
    tensors, types = HFTensors(source.rows, source.table), source.files.places()
    total = sum(place.nbytes for place in types.values())
    with byte_progress(total, "compared") as progress:
        for name, mapping in names.items():
            tensors.check_padding(name)
            examination, stored = Examination(name, types[name].dtype, mapping.shape), tensors.dtype(name)
            for first, rows in tensors.stretches(name, _BLOCK):
                block = memoryview(bytearray(rows * tensors.row_bytes(name)))
                tensors.read(name, first, block)
                if stored != types[name].dtype and len(block):
                    values: Tensor = torch.frombuffer(block, dtype=stored).to(types[name].dtype)
                    block = memoryview(values.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
                examination.update(block)
                progress.update(len(block))
            manifest.compare(TensorSum.of(examination.result()), name, source.where)
    return len(names)
