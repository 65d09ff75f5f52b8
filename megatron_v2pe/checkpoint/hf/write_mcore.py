"""The tensors of a Megatron-Core checkpoint folder, written from any source, a stretch of rows at a time.

Every stretch is a shard of its own in the data file, with a checksum; the journal says where it lies. Threads beside
look at the HF tensors meanwhile (`look.py`): whether they are numbers, and what their SHA-256 is.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from megatron_v2pe.base.whole_files import wait_for_disk
from megatron_v2pe.checkpoint.description import Shard, Written
from megatron_v2pe.checkpoint.hf.checks_beside import ChecksBeside
from megatron_v2pe.checkpoint.hf.job import Job, examined_before
from megatron_v2pe.checkpoint.hf.look import Look
from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.pipeline import Pipeline
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors, RowSource
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.checkpoint.range_reader import RangeReader
from megatron_v2pe.checkpoint.torch_dist import TorchDistWriter
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.schema import typed

_READ_AT_ONCE = 1 << 20
_BUFFERS = 4
"""Stretches in memory at once: one is read and one written, while two are looked at."""


@dataclass(frozen=True)
class _Line:
    """A line of the journal: a shard that was written."""

    shard: Shard
    key: str


@dataclass(frozen=True)
class _Stretch:
    key: str
    first_row: int
    rows: int


class ShardsWriter:
    """Writes the shards of a folder to one data file after the other, and knows those that an earlier process wrote."""

    def __init__(self, folder: Path, job: Job, largest_file: int | None) -> None:
        """Begin in a folder.

        Args:
            folder: of the checkpoint.
            job: its journal lists the shards that are there already.
            largest_file: bytes that no data file is to pass, unless with its first shard; None: there is one file.
        """
        self._folder, self._job, self._largest = folder, job, largest_file
        self.written = Written()
        self._left = [line for line in job.journal.found if "shard" in line]
        self._writer: TorchDistWriter | None = None
        self._part = self._place = 0
        self._taken_over: set[str] = set()
        """Files with shards of an earlier process, which may have ended before they were on the disk."""

    def kept(self, stretch: _Stretch, dtype: torch.dtype, size: tuple[int, ...]) -> bool:
        """Tell whether a stretch was written by an earlier process, and is whole."""
        if not self._left:
            return False
        line = typed(_Line, self._left.pop(0), str(self._job.journal.path), CheckpointError)
        shard, begin = line.shard, (stretch.first_row, *[0] * (len(size) - 1))
        asked = (stretch.key, begin, (stretch.rows, *size[1:]))
        if (line.key, shard.begin, shard.sizes) != asked or self._digest(shard) != shard.digest:
            self._left = []
            return False
        self.written.add(stretch.key, dtype, size, replace(shard, file=sys.intern(shard.file)))
        self._taken_over.add(shard.file)
        if shard.offset == 0 and self._place:
            self._part += 1
        self._place = shard.offset + shard.length
        return True

    def add(self, stretch: _Stretch, size: tuple[int, ...], rows: Tensor, dtype: torch.dtype | None) -> None:
        """Write a stretch, in a type that is asked for."""
        rows = rows if dtype is None else rows.to(dtype)
        if self._largest is not None and self._place and self._place + rows.nbytes > self._largest:
            self._close()
            self._part, self._place = self._part + 1, 0
        if self._writer is None:
            self._writer = TorchDistWriter(self._folder, 0, self._part, self._place)
        shard = self._writer.add_rows(stretch.key, size, stretch.first_row, rows)
        self._place = self._writer.place
        self.written.add(stretch.key, rows.dtype, size, shard)
        self._job.journal.add(shard=asdict(shard), key=stretch.key)

    def finish(self) -> Written:
        """Wait until all is on the disk, and return what was written."""
        self._close()
        for name in sorted(self._taken_over):
            wait_for_disk(self._folder / name)
        named = {shard.file for tensor in self.written.tensors.values() for shard in tensor.shards}
        for path in sorted(self._folder.glob("*.distcp")):
            if path.name in named:
                self.written.sizes[path.name] = path.stat().st_size
            else:  # of an earlier process, behind a place where its work did not hold
                path.unlink()
        return self.written

    def abandon(self) -> None:
        """Close what is open, after an error."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(CheckpointError)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(None)

    def _digest(self, shard: Shard) -> str:
        path = self._folder / shard.file
        if not path.is_file() or os.stat(path).st_size < shard.offset + shard.length:
            return ""
        reader, digest = RangeReader(path), xxhash.xxh3_128()
        buffer = memoryview(bytearray(min(_READ_AT_ONCE, shard.length)))
        for begin in range(0, shard.length, _READ_AT_ONCE):
            block = buffer[: min(_READ_AT_ONCE, shard.length - begin)]
            reader.read_into(shard.offset + begin, block)
            digest.update(block)
        return digest.hexdigest()


def write_tensors(
    table: MappingTable,
    source: RowSource,
    folder: Path,
    job: Job,
    checks: ChecksBeside,
    *,
    types: Mapping[str, torch.dtype],
    dtype: torch.dtype | None = None,
    largest_file: int | None = None,
) -> Written:
    """Write all tensors of a table; return where they lie.

    Args:
        table: of the model, in the layout whose HF tensors are looked at.
        source: holds the rows.
        folder: to write to.
        job: the conversion.
        checks: what runs beside; what it finds ends this.
        types: HF name -> the type in which the HF tensor is looked at: that of an export, which the manifest is of.
            A run may hold other ones, float32 where the folder it started from has bfloat16.
        dtype: type to write; None: as the source has each tensor.
        largest_file: bytes of a data file; None: there is one.

    Raises:
        CheckpointError: the source is damaged.
        OSError: the disk is full.
    """
    tensors, before = HFTensors(source, table), examined_before(job.journal)
    writer, going_on = ShardsWriter(folder, job, largest_file), True
    try:
        with Pipeline(_BUFFERS) as pipeline:
            for key, mappings in _by_key(table).items():
                stored, size = source.keys[key].dtype, mappings[0].key_shape
                width = math.prod(size[1:]) * stored.itemsize
                stretches = list(_stretches(key, size[0], job.budget.stretch // max(1, width)))
                looks = [Look(tensors, mapping, types[mapping.name], pipeline, job) for mapping in mappings]
                seen = [look for look in looks if look.begin(before, len(stretches) == 1)]
                for stretch in stretches:
                    going_on = going_on and writer.kept(stretch, dtype or stored, size)
                    written = not going_on and not job.numbers.refused  # what is left is looked at, and not written
                    if written or seen:
                        buffer = pipeline.buffer()
                        content = buffer.of_size(stretch.rows * width)
                        source.read(key, stretch.first_row, content)
                        if written:
                            rows = _tensor(content, stored, (stretch.rows, *size[1:]))
                            pipeline.write(partial(writer.add, stretch, size, rows, dtype), buffer)
                        for look in seen:
                            look.at(stretch.first_row, stretch.rows, content, buffer)
                        buffer.release()
                    job.progress.update(stretch.rows * width)
                for look in seen:
                    look.end()
                checks.look()
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _by_key(table: MappingTable) -> dict[str, list[TensorMapping]]:
    found: dict[str, list[TensorMapping]] = {}
    for mapping in table.tensors:
        found.setdefault(mapping.key, []).append(mapping)
    return found


def _stretches(key: str, rows: int, at_once: int) -> Iterator[_Stretch]:
    step = max(1, at_once)
    for first in range(0, rows, step):
        yield _Stretch(key, first, min(step, rows - first))


def _tensor(content: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return bytes as a tensor whose storage is these bytes and no more."""
    if not len(content):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)
