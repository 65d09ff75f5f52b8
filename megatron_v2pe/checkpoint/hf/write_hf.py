"""The safetensors files of an HF folder, written from any source, a block of rows at a time.

Threads beside look at every block once it is written: whether its values are numbers, and the tensor's SHA-256. A file
that a killed process has left is kept as far as its tensors have the SHA-256 that the journal says.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash

from megatron_v2pe.base.whole_files import naming
from megatron_v2pe.checkpoint.checksums import FileSum
from megatron_v2pe.checkpoint.hf.examiners import Examiners
from megatron_v2pe.checkpoint.hf.finite import Examination
from megatron_v2pe.checkpoint.hf.folder import FileLayout
from megatron_v2pe.checkpoint.hf.job import Job, examined_before
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors
from megatron_v2pe.checkpoint.hf.safetensors_io import Header, TensorPlace
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
    sums: dict[str, FileSum] = {}
    widest = max((_widest(tensors, place) for place in layout.places().values()), default=0)
    with Examiners(job.budget.buffers, max(job.budget.block, widest)) as examiners:
        for name, header in layout.shards:
            digest = xxhash.xxh3_128() if summed else None
            _write_file(tensors, folder / name, header, job, examiners, before, digest)
            if digest is not None:
                sums[name] = FileSum(header.file_size, digest.hexdigest())
    return sums


def _widest(tensors: HFTensors, place: TensorPlace) -> int:
    """Return the bytes of a row of a tensor, as it is read or as it is written."""
    return max(tensors.row_bytes(place.name), math.prod(place.shape[1:]) * place.dtype.itemsize)


def _write_file(
    tensors: HFTensors,
    path: Path,
    header: Header,
    job: Job,
    examiners: Examiners,
    before: Mapping[str, str],
    digest: xxhash.xxh3_128 | None,
) -> None:
    kept = _kept(path, header, job, before)
    end = header.data_start + (header.tensors[kept - 1].end if kept else 0)
    if kept and digest is not None:
        for block in _ranges(RangeReader(path), 0, end, job.budget.block):
            digest.update(block)
    with naming(path), path.open("r+b" if kept else "wb", buffering=0) as stream:
        stream.truncate(end if kept else 0)
        stream.seek(0, os.SEEK_END)

        def write(content: bytes | memoryview) -> None:
            _write_all(stream, content)
            if digest is not None:
                digest.update(content)

        if not kept:
            text = header.text.encode()
            write(struct.pack("<Q", len(text)) + text)
        for place in header.tensors[kept:]:
            tensors.check_padding(place.name)
            examination = Examination(place.name, place.dtype, place.shape)
            thread = examiners.thread_for(place.nbytes)
            for content, buffer in _blocks(tensors, place, job, examiners):
                write(content)
                examiners.give(thread, examination, content, buffer)
                job.progress.update(len(content))
            examiners.end(thread, examination, job.note)
        os.fsync(stream.fileno())


def _blocks(
    tensors: HFTensors, place: TensorPlace, job: Job, examiners: Examiners
) -> Iterator[tuple[memoryview, memoryview]]:
    """Yield the bytes of a tensor as they are written, each with the buffer it needs."""
    stored, width = tensors.dtype(place.name), tensors.row_bytes(place.name)
    if not place.nbytes:
        return
    for first, rows in tensors.stretches(place.name, job.budget.block):
        buffer = examiners.buffer()
        content = buffer[: rows * width]
        tensors.read(place.name, first, content)
        if stored != place.dtype:
            values: Any = torch.frombuffer(content, dtype=stored).to(place.dtype).view(torch.uint8).numpy()
            content = memoryview(values)
        yield content, buffer


def _write_all(stream: BinaryIO | Any, content: bytes | memoryview) -> None:
    """Write to a stream without a buffer of its own, which may take less than it is given."""
    left = memoryview(content)
    while len(left):
        left = left[stream.write(left) :]


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
