"""Checkpoint folders that a test has edited on purpose: their checksums made anew, so that what lies behind is seen."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.checkpoint.checksums import Checksums, sums_of_files


def seal(folder: Path) -> Path:
    """Give a checkpoint folder the checksums of its present files; shards of tensors keep theirs. Return it."""
    known = Checksums.read(folder) or Checksums()
    data = {name: entry for name, entry in known.files.items() if entry.shards}
    Checksums({**data, **sums_of_files(folder, but=data)}).write(folder)
    return folder
