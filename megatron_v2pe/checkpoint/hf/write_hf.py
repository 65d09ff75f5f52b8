"""The safetensors files of an HF folder, written from any source, a block of rows at a time.

Threads beside write every block and look at it: whether its values are numbers, and the tensor's SHA-256. A file that a
killed process has left is kept as far as its tensors have the SHA-256 that the journal says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash

from megatron_v2pe.checkpoint.appended_file import AppendedFile
from megatron_v2pe.checkpoint.checksums import FileSum
from megatron_v2pe.checkpoint.hf.finite import Examination
from megatron_v2pe.checkpoint.hf.folder import FileLayout
from megatron_v2pe.checkpoint.hf.job import Job, examined_before
from megatron_v2pe.checkpoint.hf.pipeline import Pipeline
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors
from megatron_v2pe.checkpoint.hf.safetensors_io import Header
from megatron_v2pe.checkpoint.range_reader import RangeReader


def write_files(tensors: HFTensors, layout: FileLayout, folder: Path, job: Job, summed: bool) -> dict[str, FileSum]:
    """Write the shards of an HF folder; return their sizes and checksums by name.

    Args:
        tensors: gives rows of every tensor of the layout, in the type they are stored in.
        layout: names and headers of the shards; tensors are converted to the types that these state.
        folder: to write to.
        job: the conversion.
        summed: whether sizes and checksums are wanted.

    Raises:
        CheckpointError: the source is damaged, or its padding holds numbers.
        OSError: the disk is full.
    """
    before = examined_before(job.journal)
    digests = {name: xxhash.xxh3_128() for name, _ in layout.shards} if summed else {}
    with ExitStack() as files, Pipeline(job.budget.buffers) as pipeline:
        for name, header in layout.shards:
            shard = _Shard(folder / name, header, job, before, digests.get(name))
            files.callback(shard.file.close)
            _fill(shard, tensors, job, pipeline)
            pipeline.write(shard.finish)
    return {name: FileSum(header.file_size, digests[name].hexdigest()) for name, header in layout.shards if summed}


class _Shard:
    """A file that is written, from where an earlier process has left it."""

    def __init__(
        self, path: Path, header: Header, job: Job, before: Mapping[str, str], digest: xxhash.xxh3_128 | None
    ) -> None:
        kept = _kept(path, header, job, before)
        end = header.data_start + header.tensors[kept - 1].end if kept else 0
        if end and digest is not None:
            for block in _ranges(RangeReader(path), 0, end, job.budget.block):
                digest.update(block)
        self.left = header.tensors[kept:]
        """The tensors that are still to be written."""
        self.file, self._digest = AppendedFile(path, end), digest
        self.start = "" if kept else header.text
        self.data_start = header.data_start

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        self.file.write(content)
        if self._digest is not None:
            self._digest.update(content)

    def finish(self) -> None:
        """Close the file once it is on the disk."""
        self.file.sync()
        self.file.close()


def _fill(shard: _Shard, tensors: HFTensors, job: Job, pipeline: Pipeline) -> None:
    """Read what a shard lacks, and have it written and looked at."""
    if shard.start:
        text = shard.start.encode()
        pipeline.write(partial(shard.write, struct.pack("<Q", len(text)) + text))
    for place in shard.left:
        tensors.check_padding(place.name)
        examination = Examination(place.name, place.dtype, place.shape)
        examiner, at = pipeline.examiner_for(place.nbytes), shard.data_start + place.begin
        stored, width = tensors.dtype(place.name), tensors.row_bytes(place.name)
        for first, rows in tensors.stretches(place.name, job.budget.block) if place.nbytes else ():
            buffer = pipeline.buffer()
            content = buffer.of_size(rows * width, at)
            tensors.read(place.name, first, content)
            if stored != place.dtype:
                values: Any = torch.frombuffer(content, dtype=stored).to(place.dtype).view(torch.uint8).numpy()
                content = memoryview(values)
            pipeline.write(partial(shard.write, content), buffer)
            pipeline.examine(examiner, partial(examination.update, content), buffer)
            buffer.release()
            at += len(content)
            job.progress.update(len(content))
        pipeline.conclude(examiner, examination, job.note)


def _kept(path: Path, header: Header, job: Job, before: Mapping[str, str]) -> int:
    """Return how many tensors of a file an earlier process has written to the end, and take them over."""
    if not before or not path.is_file():
        return 0
    reader, size, text = RangeReader(path), path.stat().st_size, header.text.encode()
    expected = struct.pack("<Q", len(text)) + text
    head = memoryview(bytearray(len(expected)))
    if size < len(expected):
        return 0
    reader.read_into(0, head)
    if bytes(head) != expected:
        return 0
    for number, place in enumerate(header.tensors):
        known = before.get(place.name)
        if known is None or size < header.data_start + place.end:
            return number
        examination = Examination(place.name, place.dtype, place.shape)
        for block in _ranges(reader, header.data_start + place.begin, place.nbytes, job.budget.block):
            examination.update(block)
        examined = examination.result()
        if examined.sha256 != known:
            return number
        job.note_known(examined)
        job.progress.update(place.nbytes)
    return len(header.tensors)


def _ranges(reader: RangeReader, begin: int, length: int, size: int) -> Iterator[memoryview]:
    """Yield a range of a file, `size` bytes at a time, in memory that is used again for the next."""
    buffer = memoryview(bytearray(min(size, length)))
    for at in range(0, length, size):
        block = buffer[: min(size, length - at)]
        reader.read_into(begin + at, block)
        yield block
