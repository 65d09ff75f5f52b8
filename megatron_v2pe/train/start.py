"""Where a run starts from: an HF folder (converted once, cached) or a Megatron checkpoint folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from megatron_v2pe.checkpoint.folder import DESCRIPTION, HF_FOLDER, newest
from megatron_v2pe.checkpoint.vet import verify_side_files
from megatron_v2pe.convert.api import hf_to_mcore
from megatron_v2pe.device.agreement import on_first_rank
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.logging import get_logger

_log = get_logger(__name__)


def start_folder(source: str, cache: str | None, verify: bool = True) -> Path:
    """Return the Megatron checkpoint folder to start from, converting an HF folder on rank 0 where needed.

    Every rank calls this; an error on rank 0 is raised on all. Its configuration and tokenizer may be read after this.

    Args:
        source: an HF InternVL2 folder, a Megatron checkpoint folder, or a training run's folder.
        cache: where converted HF checkpoints are kept; one folder per content of `source`.
        verify: compare the checksums of the folder's small files; those of tensors are compared when they are loaded.

    Raises:
        ConfigError: `source` is neither, or needs converting and there is no cache.
        CheckpointError: the conversion found something wrong.
    """
    folder = _find(Path(source), cache)
    if verify:
        on_first_rank(lambda: verify_side_files(folder))
    return folder


def _find(path: Path, cache: str | None) -> Path:
    if not path.is_dir():
        raise ConfigError(f"model.model_name_or_path: {path} is not a folder")
    if (path / DESCRIPTION).is_file():
        return path
    if (checkpoint := newest(path)) is not None:
        return checkpoint
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.model_name_or_path: {path} holds neither config.json (an HF checkpoint) nor {DESCRIPTION} "
            "(a Megatron checkpoint)"
        )
    if cache is None:
        raise ConfigError("set checkpoint.save or model.converted_dir: the converted HF checkpoint needs a place")
    folder = Path(cache) / _fingerprint(path)
    on_first_rank(lambda: _convert(path, folder))
    return folder


def hf_folder(checkpoint: Path) -> Path:
    """Return the folder with config and tokenizer of a Megatron checkpoint."""
    folder = checkpoint / HF_FOLDER
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'}: missing; {checkpoint} is not a checkpoint of this project")
    return folder


def _convert(source: Path, folder: Path) -> None:
    if (folder / DESCRIPTION).is_file():
        try:
            verify_side_files(folder)
        except CheckpointError as error:
            _log.warning("%s; converting %s again", error, source)
        else:
            _log.info("using %s, converted from %s before", folder, source)
            return
    _log.info("converting %s to %s", source, folder)
    hf_to_mcore(source, folder, overwrite=True)


def _fingerprint(source: Path) -> str:
    """Name a folder by the names, sizes and times of its files, so that changed weights are converted again."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([os.path.abspath(source), stamps])
    return f"{source.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
