"""What a checkpoint folder is made of: the names of its files, which one is a run's newest, which may be replaced."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.whole_files import put_in_place, write_text
from megatron_v2pe.checkpoint.best import BestCheckpoints
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import read_text

_log = get_logger(__name__)
FORMAT_VERSION = 2
"""1: without checksums, with an object beside every linear layer; 2: `checksums.json`, tensors alone."""
LATEST = "latest_checkpointed_iteration.txt"
TRAINING_STATE = "training_state.json"
DESCRIPTION = "checkpoint.json"
HF_FOLDER = "hf"
HF_LAYOUT = "layout.json"
"""Inside `hf/`: how the HF checkpoint was cut into shards, header by header."""
ORIGINALS = "v2pe_original"
"""Folder of a native HF folder with the files of the original one that others stand in place of."""
ADAPTER_FILE = "adapter.json"
"""Names the base of a checkpoint that holds adapters, see `checkpoint.adapters`."""
METADATA = ".metadata"
"""PyTorch's own description of the tensors; a pickle, so vetted before use."""
MEGATRON_CONFIG = "metadata.json"
COMMON = "common.pt"
AVERAGED = "optimizer.state.ema."
"""Begins the key of the moving average of a weight in a training checkpoint; the weight's own key follows."""


def iteration_folder(root: Path, iteration: int) -> Path:
    """Return the folder of one checkpoint."""
    return root / f"iter_{iteration:07d}"


def iteration_of(folder: Path) -> int | None:
    """Return the step a checkpoint folder's name states, None where it states none."""
    match = re.fullmatch(r"iter_([0-9]{7,18})", folder.name)
    return None if match is None else int(match[1])


def iterations(root: Path) -> list[int]:
    """Return the steps of all finished checkpoints under `root`, in order: a folder has its name once it is whole."""
    found = (iteration_of(path) for path in root.iterdir() if path.is_dir()) if root.is_dir() else ()
    return sorted(number for number in found if number is not None)


def latest_iteration(root: Path) -> int | None:
    """Return the iteration of the newest finished checkpoint under `root`, None where there is none.

    The tracker file says which one that is; where it is lost, the folders do. One that names an older checkpoint than
    the newest counts: it may have been set back on purpose, or the run was killed before it moved on.

    Raises:
        CheckpointError: the tracker file is not a number, or names a folder that is missing; says which are there.
    """
    tracker, there = root / LATEST, iterations(root)
    if not tracker.is_file():
        if there:
            _log.warning("%s is missing; going on from the newest checkpoint, iter_%07d", tracker, there[-1])
        return there[-1] if there else None
    text = read_text(tracker, CheckpointError, 1 << 10).strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CheckpointError(f"{tracker}: expected an iteration number, found {printable(text)[:40]!r}{_offer(there)}")
    number = int(text)
    if number not in there:
        folder = iteration_folder(root, number)
        raise CheckpointError(f"{tracker}: names iteration {number}, but {folder} does not exist{_offer(there)}")
    if number < there[-1]:
        _log.warning("%s names iteration %d; a newer checkpoint, %d, is there and not used", tracker, number, there[-1])
    return number


def offer_others(folder: Path) -> str:
    """Return how to go on from another checkpoint of the same run, where `folder` cannot be used."""
    others = [number for number in iterations(folder.parent) if number != iteration_of(folder)]
    if not others or iteration_of(folder) is None:
        return ""
    return _offer(others).replace("the file", str(folder.parent / LATEST))


def _offer(there: list[int]) -> str:
    """Return how to go on from what is there."""
    if not there:
        return "; there is no other checkpoint: remove the file to start anew"
    return f"; to go on from another, write its number into the file: {', '.join(map(str, there[-5:]))}"


def newest(root: Path) -> Path | None:
    """Return the folder of a run's newest finished checkpoint, None where there is none; see `latest_iteration`."""
    iteration = latest_iteration(root)
    return None if iteration is None else iteration_folder(root, iteration)


def put_in_place_as_newest(temporary: Path, folder: Path, keep_latest: int | None) -> None:
    """Give a checkpoint that is written its name, make it its run's newest, and remove old ones.

    Args:
        temporary: folder it was written to.
        folder: `iter_*` folder it becomes; one that is there is replaced.
        keep_latest: checkpoints to keep; None: all.
    """
    root, iteration = folder.parent, iteration_of(folder)
    assert iteration is not None, folder
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(temporary, folder)
    write_text(root / LATEST, f"{iteration}\n", durable=True)
    remove_old(root, iteration, keep_latest)


def remove_old(root: Path, newest: int, keep_latest: int | None) -> None:
    """Remove all but the `keep_latest` newest checkpoints up to `newest`, and those that are kept as the run's best.

    A checkpoint after `newest` comes from a run that was killed before it counted; it is written again in time.
    """
    counted = [number for number in iterations(root) if number <= newest]
    best = BestCheckpoints.read(root).best(counted) if keep_latest else ()
    for number in counted[:-keep_latest] if keep_latest else ():
        if number not in best:
            old = iteration_folder(root, number)
            _log.info("removing old checkpoint %s", old)
            shutil.rmtree(old)


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
    check_target(target, overwrite, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(target)  # another process may write the same folder: its own is left alone
    temporary = target.with_name(f".{target.name}.writing-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target, replace=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_left_over(target: Path) -> None:
    """Remove what conversions of earlier versions have left beside `target` when they were killed."""
    mark = f".{target.name}.writing-{socket.gethostname()}-"
    for stale in target.parent.iterdir():
        if stale.name.startswith(mark) and not _runs(stale.name.removeprefix(mark)):
            shutil.rmtree(stale, ignore_errors=True)


def _runs(process: str) -> bool:
    """Tell whether a process of this machine runs, by its number."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def check_target(target: Path, overwrite: bool, marker: str) -> None:
    """Check that a folder can be created, or may be replaced.

    Args:
        target: the folder to create.
        overwrite: replace a folder that is there already.
        marker: file that only a folder of this kind holds; a folder without it is never replaced.

    Raises:
        CheckpointError: `target` exists and may not be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: exists and is not a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{target}: exists and is not empty; use --overwrite to replace it")
    if not (target / marker).is_file():
        raise CheckpointError(f"{target}: not replaced, for it holds no {marker} and so is no checkpoint of this kind")
