"""The tensors of a `torch_dist` checkpoint, one at a time and without a process group.

Every shard is an archive of `torch.save` in a data file. It gets a checksum while it is written, and is compared with
it when it is read. Neither PyTorch nor Megatron-Core ever loads a byte of a checkpoint: `foreign.pickles` does.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.appended_file import AppendedFile
from megatron_v2pe.checkpoint.checksums import Checksums, SummedStream, digest_of
from megatron_v2pe.checkpoint.description import Shard, StoredTensor, Written
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.pickles import load_archive


class TorchDistWriter:
    """Append tensors to a new data file; use as a context manager."""

    def __init__(self, folder: Path, rank: int = 0, part: int = 0, kept: int = 0) -> None:
        """Open a data file in `folder`, which exists.

        Args:
            folder: of the checkpoint.
            rank: of the process that writes the file.
            part: number of the file among those of this process.
            kept: bytes of a file that is there already which stay; it is cut off behind them.
        """
        self.name = sys.intern(f"__{rank}_{part}.distcp")  # one object, however many writers: pickles see a difference
        self._file = AppendedFile(folder / self.name, kept)
        self._stream = SummedStream(self._file, str(folder / self.name))
        self._stream.place = kept
        self.written = Written()

    def __enter__(self) -> TorchDistWriter:
        """Return the writer."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the data file; after no error it is on the disk."""
        try:
            if error[0] is None:
                self._file.sync()
                self.written.sizes[self.name] = self._stream.place
        finally:
            self._stream.close()
            self._file.close()

    @property
    def place(self) -> int:
        """Bytes of the file by now."""
        return self._stream.place

    def add_rows(self, key: str, shape: Sequence[int], first_row: int, rows: Tensor) -> Shard:
        """Write rows `first_row ...` of tensor `key`, all other axes whole; see `add`."""
        return self.add(key, tuple(shape), (first_row, *[0] * (rows.dim() - 1)), rows)

    def add(self, key: str, size: tuple[int, ...], begin: tuple[int, ...], values: Tensor) -> Shard:
        """Write a part of a tensor, and return where it lies.

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
        except RuntimeError:
            if self._stream.failed is not None:  # "unexpected pos", says PyTorch of a full disk
                raise self._stream.failed from None
            raise
        finally:
            torch.serialization.set_crc32_options(checksums)
        length, digest = self._stream.place - start, self._stream.take()
        shard = Shard(tuple(begin), tuple(values.shape), self.name, start, length, digest)
        self.written.add(key, values.dtype, tuple(size), shard)
        return shard


class TorchDistReader:
    """Read parts of tensors of a vetted checkpoint folder, whatever layout wrote it."""

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor], checksums: Checksums | None = None) -> None:
        """Remember the folder and what `vet_checkpoint` found in it.

        Args:
            folder: of the checkpoint.
            tensors: its tensors.
            checksums: compared with what is read; None: nothing is compared.
        """
        self.folder, self.tensors = folder, tensors
        self.checksums = checksums
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
            raise CheckpointError(f"{self.folder}: {key}: shards hold {covered} of {target.numel()} values")
        return target

    def _shard(self, key: str, entry: StoredTensor, shard: Shard) -> Tensor:
        """Return a shard as a view of its file, compared with its checksum the first time."""
        where = f"{self.folder / shard.file}: {key}"
        content = self._file(shard.file)[shard.offset : shard.offset + shard.length]
        if len(content) != shard.length:
            raise CheckpointError(f"{where}: damaged: {len(content)} of {shard.length} bytes")
        if self.checksums is not None and (shard.file, shard.offset) not in self._checked:
            known = self._sums.setdefault(shard.file, self.checksums.shards_of(shard.file))
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
            path = self.folder / name
            try:
                with path.open("rb") as stream:
                    # Copied on writing, so that views of it are ordinary tensors; the file itself is never changed.
                    self._files[name] = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return self._files[name]


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


def check_padding(key: str, size: tuple[int, ...], rows: int, reader: TorchDistReader, folder: Path) -> None:
    """Check that rows which a checkpoint holds of a vocabulary beyond the model's are padding.

    Raises:
        CheckpointError: they hold numbers, which would be lost.
    """
    beyond = reader.read_rows(key, rows, size[0] - rows)
    if count := int(beyond.count_nonzero()):
        raise CheckpointError(
            f"{folder}: does not fit this model: {key} has {size[0]} rows, the model's vocabulary {rows}, and {count} "
            "values of the rows beyond are not zero: they are no padding"
        )
