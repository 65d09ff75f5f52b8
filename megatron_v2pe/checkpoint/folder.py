"""What a checkpoint folder is made of: the names of its files, which one is a run's newest, how one is put in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_v2pe.errors import CheckpointError

FORMAT_VERSION = 1
LATEST = "latest_checkpointed_iteration.txt"
TRAINING_STATE = "training_state.json"
DESCRIPTION = "checkpoint.json"
HF_FOLDER = "hf"
HF_LAYOUT = "layout.json"
"""Inside `hf/`: how the HF checkpoint was cut into shards, header by header."""
METADATA = ".metadata"
"""PyTorch's own description of the tensors; a pickle, so vetted before use."""
MEGATRON_CONFIG = "metadata.json"
COMMON = "common.pt"


def iteration_folder(root: Path, iteration: int) -> Path:
    """Return the folder of one checkpoint."""
    return root / f"iter_{iteration:07d}"


def latest_iteration(root: Path) -> int | None:
    """Return the iteration of the newest finished checkpoint under `root`, None where there is none.

    Raises:
        CheckpointError: the tracker file is not a number, or names a folder that is missing.
    """
    tracker = root / LATEST
    if not tracker.is_file():
        return None
    text = tracker.read_text().strip()
    if not text.isdigit():
        raise CheckpointError(f"{tracker}: expected an iteration number, found {text[:40]!r}")
    folder = iteration_folder(root, int(text))
    if not folder.is_dir():
        raise CheckpointError(f"{tracker}: names iteration {text}, but {folder} does not exist")
    return int(text)


def newest(root: Path) -> Path | None:
    """Return the folder of a run's newest finished checkpoint, None where there is none; see `latest_iteration`."""
    iteration = latest_iteration(root)
    return None if iteration is None else iteration_folder(root, iteration)


@contextmanager
def new_folder(target: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """Give a temporary folder beside `target` to write into; it becomes `target` when the block ends without error.

    Args:
        target: the folder to create.
        overwrite: replace a folder that is there already.
        marker: file that only a folder of this kind holds; a folder without it is never replaced.

    Raises:
        CheckpointError: `target` exists and may not be replaced.
    """
    _check_target(target, overwrite, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(target: Path, overwrite: bool, marker: str) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: exists and is not a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{target}: exists and is not empty; use --overwrite to replace it")
    if not (target / marker).is_file():
        raise CheckpointError(f"{target}: not replaced, for it holds no {marker} and so is no checkpoint of this kind")


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; what was there before goes last, and comes back if the renaming fails."""
    if not target.exists():
        os.replace(temporary, target)
        return
    old = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)
