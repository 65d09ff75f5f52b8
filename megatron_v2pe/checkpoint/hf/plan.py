"""What a conversion will read, write and hold, said before it starts."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.folder import FileLayout
from megatron_v2pe.checkpoint.hf.journal import hidden_folder
from megatron_v2pe.checkpoint.hf.open_source import OpenSource
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.errors import SpaceError
from megatron_v2pe.foreign.printable import printable

_BESIDE = 64 << 20
"""Bytes left for what lies beside the weights: tokenizer, descriptions, checksums."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion before it starts."""

    source: str
    target: Path
    reads: Counter[torch.dtype]
    """Bytes of tensors by type."""
    read_tensors: int
    read_files: int | None
    """Files of weights; None: they are not there."""
    writes: Counter[torch.dtype]
    written_tensors: int
    written_files: int
    """Files of weights, about."""
    holds: int
    """Bytes above the interpreter, at most."""
    limit: int
    free: int
    """Bytes of the target's disk that nobody uses, with what an unfinished conversion to it has written."""

    @classmethod
    def of(
        cls, source: OpenSource, target: Path, options: Options, files: FileLayout, to_mcore: bool
    ) -> ConversionPlan:
        """Return the plan of a conversion.

        Args:
            source: what is read.
            target: folder to create.
            options: what is asked.
            files: tensors that are written, as an HF folder has them.
            to_mcore: whether they are written as a Megatron checkpoint.
        """
        places, keys = source.files.places(), source.rows.keys
        writes: Counter[torch.dtype] = Counter()
        if to_mcore:
            writes = source.stored_bytes(options.wanted_dtype)
        else:
            for place in files.places().values():
                writes[place.dtype] += place.nbytes
        data_files = 1 if options.largest_file is None else -(-writes.total() // options.largest_file)
        widest = max((stored.row_bytes for stored in keys.values()), default=0)
        return cls(
            source.where,
            target,
            source.bytes_of() if source.is_hf else source.stored_bytes(),
            len(places) if source.is_hf else len(keys),
            len(source.files.shards) if source.is_hf else None,
            writes,
            len(keys) if to_mcore else len(files.places()),
            data_files if to_mcore else len(files.shards),
            options.budget.held(widest * (2 if options.dtype else 1)),
            options.budget.limit,
            free_bytes(target),
        )

    def lines(self) -> list[str]:
        """Return the plan in words."""
        there = "" if self.read_files is None else f" in {_counted(self.read_files, 'file')}"
        cut = f" in {_counted(self.written_files, 'file')}"
        return [
            f"reads {printable(self.source)}: {self.read_tensors} tensors, {_text(self.reads)}{there}",
            f"writes {printable(self.target)}: {self.written_tensors} tensors, {_text(self.writes)}{cut}",
            f"holds {_size(self.holds)} at most above the interpreter (--memory-limit {_size(self.limit)})",
            f"disk: {_size(self.free)} free, {_size(self.needed)} needed"
            + ("" if self.needed <= self.free else ": too little, the conversion would be refused"),
        ]

    @property
    def needed(self) -> int:
        """Bytes on the target's disk."""
        return sum(self.writes.values()) + _BESIDE

    def check(self) -> None:
        """Check that the disk can hold what is written.

        Raises:
            SpaceError: it cannot; names the folder and both numbers.
        """
        if self.needed > self.free:
            raise SpaceError(
                f"{printable(self.target)}: the conversion writes {_size(sum(self.writes.values()))}, the disk has "
                f"{_size(self.free)} free; make room, or name a folder on another disk, and run the same command again"
            )

    def announce(self) -> None:
        """Say the plan in the log; refuse one that the disk cannot hold."""
        for line in self.lines():
            _log.info("%s", line)
        self.check()


def free_bytes(target: Path) -> int:
    """Return the free bytes of the disk that a folder is made on, with those an unfinished conversion has taken."""
    parent = next(one for one in (target.absolute(), *target.absolute().parents) if one.is_dir())
    hidden = hidden_folder(target)
    taken = sum(path.stat().st_size for path in hidden.rglob("*") if path.is_file()) if hidden.is_dir() else 0
    return shutil.disk_usage(parent).free + taken


def _text(bytes_of: Counter[torch.dtype]) -> str:
    total = sum(bytes_of.values())
    types = ", ".join(str(dtype).removeprefix("torch.") for dtype, _ in bytes_of.most_common())
    return f"{_size(total)} ({types})"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
