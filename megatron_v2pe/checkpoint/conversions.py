"""Conversions of HF folders, kept in one place: training, generation and evaluation find what any of them has made.

A conversion is found by its source's path and the names, sizes and times of its files. Processes that want the same one
at once convert it once: the first holds the folder of all conversions, the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_v2pe.base.exit_status import NO_SPACE
from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.run_lock import FolderLock
from megatron_v2pe.checkpoint.adapters import AdapterPointer
from megatron_v2pe.checkpoint.folder import DESCRIPTION
from megatron_v2pe.checkpoint.hf.api import hf_to_mcore
from megatron_v2pe.checkpoint.low_rank.run_adapter import base_of
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.vet import verify_side_files
from megatron_v2pe.device.rank_errors import run_on_first_rank, share_from_first_rank
from megatron_v2pe.errors import CheckpointError, ConfigError, InUseError
from megatron_v2pe.foreign.printable import printable

CONVERTED = "work_dirs/converted"
"""Where conversions are kept unless the user says otherwise."""
CONVERTED_VARIABLE = "MEGATRON_V2PE_CONVERTED_DIR"
"""Environment variable that names another place for all tools."""
_LOCK_FOLDER = ".converting"
_POLL_SECONDS = 1.0
_log = get_logger(__name__)


def conversions(named: str | Path | None) -> Path:
    """Return the folder of all conversions: as named, as the environment says, or `CONVERTED`."""
    return Path(named or os.environ.get(CONVERTED_VARIABLE) or CONVERTED)


def known_conversion(source: Path, places: Sequence[Path]) -> Path | None:
    """Return the first conversion of an HF folder that is there and whole, None where there is none; nothing is made.

    Args:
        source: HF folder.
        places: folders of conversions.
    """
    for place in places:
        folder = place / _fingerprint(source)
        if not (folder / DESCRIPTION).is_file():
            continue
        try:
            verify_side_files(folder)
        except CheckpointError as error:
            _log.warning("%s; converting %s again", error, source)
        else:
            return folder
    return None


def converted(source: Path, place: Path, others: Sequence[Path] = ()) -> Path:
    """Return the Megatron checkpoint of an HF folder, converting it where that was not done before.

    Args:
        source: HF folder.
        place: folder of conversions.
        others: folders where conversions of earlier versions may lie; nothing is written there.

    Raises:
        ConfigError: the folder cannot be converted: another architecture, settings that are wrong.
        CheckpointError: its weights are missing or damaged.
    """
    if (known := known_conversion(source, (place, *others))) is None:
        with _held(place, source):
            known = known_conversion(source, (place,))  # by who held it before
            if known is None:
                folder = place / _fingerprint(source)
                _log.info("converting %s to %s", source, folder)
                hf_to_mcore(source, folder, overwrite=True)
                return folder
    _log.info("using %s, converted from %s before; remove it to have it converted again", known, source)
    return known


def start_folder(
    source: str,
    cache: str | Path | None,
    verify: bool = True,
    others: Sequence[Path] = (),
) -> Path:
    """Return the Megatron checkpoint folder to start from, converting an HF folder on rank 0 where needed.

    Every rank calls this; an error on rank 0 is raised on all. Its configuration and tokenizer may be read after this.

    Args:
        source: an HF InternVL folder, a Megatron checkpoint folder, or a training run's folder.
        cache: where converted HF checkpoints are kept, see `conversions`.
        verify: compare the checksums of the folder's small files; those of tensors are compared when they are loaded.
        others: further folders in which a conversion may be found.

    Raises:
        ConfigError: `source` is neither.
        CheckpointError: the conversion found something wrong, or a file is damaged.
    """
    folder = share_from_first_rank(lambda: _find(source, cache, others))
    if verify:
        run_on_first_rank(lambda: verify_side_files(folder))
    return folder


def weights_folder(checkpoint: Path, cache: str | Path | None = None) -> Path:
    """Return the Megatron checkpoint whose weights a checkpoint has: itself, or its base where it holds an adapter.

    Args:
        checkpoint: folder of one Megatron checkpoint.
        cache: where the base is converted if it is an HF folder, see `conversions`.

    Raises:
        CheckpointError: the base is gone.
    """
    pointer = AdapterPointer.read(checkpoint)
    if pointer is None:
        return checkpoint
    place = base_of(pointer, checkpoint)
    return converted(place.folder, conversions(cache)) if place.is_hf else place.folder


def _find(source: str, cache: str | Path | None, others: Sequence[Path]) -> Path:
    place = find_checkpoint(source, "model.model_name_or_path")
    return converted(place.folder, conversions(cache), others) if place.is_hf else place.folder


@contextmanager
def _held(place: Path, source: Path) -> Generator[None, None, None]:
    """Hold the folder of conversions, waiting for who holds it."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        usable = os.access(place, os.W_OK)
    except OSError as error:
        usable = False
        if error.errno in NO_SPACE:
            raise
    if not usable:
        raise ConfigError(
            f"{printable(place)}: no folder that can be written to, but converted HF checkpoints are kept there; name "
            f"another one (--converted-dir, model.converted_dir, or {CONVERTED_VARIABLE} in the environment)"
        )
    lock, reported = FolderLock(place / _LOCK_FOLDER, "a conversion"), False
    while True:
        try:
            lock.take()
            break
        except InUseError as error:
            if not reported:
                _log.info("waiting to convert %s: %s", source, error)
                reported = True
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _fingerprint(source: Path) -> str:
    """Name a folder by its path and the names, sizes and times of its files: changed weights are converted again."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([os.path.realpath(source), stamps])
    return f"{Path(os.path.realpath(source)).name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
