"""Is this checkpoint folder whole, undamaged, and safe to read?

Every checkpoint is opened here, whoever wrote it. The files are all there and no link leads out of the folder; each
file has the checksum it was written with, shards of tensors when they are read; descriptions are read through types
with ranges. PyTorch's own description (`.metadata`) and `common.pt` are pickles: `foreign.pickles` reads them without
running anything, and what it returns is what is used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.checksums import CHECKSUMS, Checksums
from megatron_v2pe.checkpoint.description import StoredTensor, read_common, read_tensors
from megatron_v2pe.checkpoint.folder import (
    COMMON,
    DESCRIPTION,
    FORMAT_VERSION,
    HF_FOLDER,
    MEGATRON_CONFIG,
    METADATA,
    TRAINING_STATE,
)
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.files import check_links
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object

_log = get_logger(__name__)
_SUMMED_SINCE = 2
"""Format version since which every folder has checksums."""


def vet_checkpoint(folder: Path, verify: bool = True, files: bool = True) -> TorchDistReader:
    """Check that a checkpoint folder is complete, undamaged and safe; nothing of it has been trusted before.

    Args:
        folder: of the checkpoint.
        verify: compare checksums; off for a folder that was changed on purpose.
        files: also those of all small files; off where another rank of the run looks at them.

    Returns:
        What reads its tensors, and compares their checksums while it does.

    Raises:
        CheckpointError: something is missing, damaged, of a later format or refused; the file is named.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    for name in (METADATA, MEGATRON_CONFIG, COMMON, DESCRIPTION):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: {name} is missing; the checkpoint was not finished or not copied whole: copy it again, or "
                "name an older one (iter_*)"
            )
    check_links(folder, CheckpointError)
    checksums = _checksums(folder) if verify else None
    if checksums is not None and files:
        checksums.check_files(folder)
    _vet_description(folder)
    _vet_backend(folder / MEGATRON_CONFIG)
    if files:
        read_common(folder)
    tensors = read_tensors(folder)
    _vet_data_files(folder, tensors)
    return TorchDistReader(folder, tensors, checksums)


def verify_side_files(folder: Path) -> None:
    """Compare the small files of a checkpoint folder with their checksums: configuration, tokenizer, state of the run.

    Cheap: no tensor is read. For those who read a folder's `hf/` before, or without, its tensors.

    Raises:
        CheckpointError: one is damaged or gone, or a link leaves the folder.
    """
    check_links(folder, CheckpointError)
    checksums = _checksums(folder)
    if checksums is not None:
        checksums.check_files(folder)


def read_description(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a checkpoint.

    Raises:
        CheckpointError: missing, not JSON, or not an object.
    """
    return read_json_object(path, CheckpointError)


def _checksums(folder: Path) -> Checksums | None:
    """Return the checksums of a folder; None for one written before there were any, with a line in the log."""
    checksums = Checksums.read(folder)
    if checksums is None:
        version = read_description(folder / DESCRIPTION).get("format_version")
        if isinstance(version, int) and version >= _SUMMED_SINCE:
            raise CheckpointError(
                f"{folder / CHECKSUMS}: missing; copy the checkpoint again, or read it with --no-verify, unchecked"
            )
        _log.warning("%s has no checksums (format version %s): damage to it cannot be noticed", folder, version)
    return checksums


def _vet_description(folder: Path) -> None:
    path = folder / DESCRIPTION
    content = Fields(read_description(path), str(path), CheckpointError)
    version = content.content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version!r}, this program reads up to {FORMAT_VERSION}")
    kind = content.text("kind", among=("training", "converted"))
    content.whole("iteration", least=0)
    if kind == "training" and not (folder / TRAINING_STATE).is_file():
        raise CheckpointError(
            f"{folder}: {TRAINING_STATE} is missing, which says how it was trained; copy the checkpoint again, or go "
            "on from an older one"
        )
    if not (folder / HF_FOLDER).is_dir():
        raise CheckpointError(f"{folder}: {HF_FOLDER}/ is missing; the checkpoint was not copied whole")


def _vet_backend(path: Path) -> None:
    config = read_description(path)
    found = (config.get("sharded_backend"), config.get("common_backend", "torch"))
    if found != ("torch_dist", "torch"):
        raise CheckpointError(f"{path}: storage {found[0]!r} with {found[1]!r}, expected 'torch_dist' with 'torch'")


def _vet_data_files(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    """Compare the data files with the places that the metadata names."""
    needed: dict[str, int] = {}
    for tensor in tensors.values():
        for shard in tensor.shards:
            needed[shard.file] = max(needed.get(shard.file, 0), shard.offset + shard.length)
    for name, size in needed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing; the checkpoint was not finished or not copied whole: copy it again, or name an "
                "older one (iter_*)"
            )
        if (found := os.stat(path).st_size) < size:
            raise CheckpointError(f"{path}: truncated: {found} bytes, the checkpoint needs {size}")
