"""Training checkpoints: written so that a kill at any moment leaves the previous one usable, resumed in any layout.

`<root>/iter_0000050/` is a self-contained Megatron checkpoint folder: the distributed tensors (`torch_dist`), `hf/`
(config, tokenizer and layout of the HF checkpoint it descends from), `checkpoint.json` and `training_state.json`. It
is written under a temporary name and renamed when every rank has finished; `latest_checkpointed_iteration.txt` moves
only after that. No pickle is written by us, and what PyTorch pickles is vetted before it is read.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.optimizer import MegatronOptimizer
from torch import nn

from megatron_v2pe.checkpoint import optimizer_state
from megatron_v2pe.checkpoint.folder import (
    DESCRIPTION,
    FORMAT_VERSION,
    HF_FOLDER,
    LATEST,
    TRAINING_STATE,
    iteration_folder,
)
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.logging import get_logger
from megatron_v2pe.version import __version__

_log = get_logger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """What a resumed run needs beside tensors; plain JSON."""

    iteration: int
    """Steps done."""
    loader: dict[str, Any]
    """State of the data loader: what has been consumed."""
    settings: dict[str, Any]
    """The resolved configuration of the run."""


def save(
    root: Path,
    model: nn.Module,
    optimizer: MegatronOptimizer,
    state: TrainingState,
    hf_source: Path,
    keep_latest: int | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint; every rank calls this.

    Args:
        root: folder of the run's checkpoints.
        model: this rank's stage (unwrapped).
        optimizer: its optimizer.
        state: what else a resumed run needs.
        hf_source: folder whose `hf/` describes the HF checkpoint this run descends from.
        keep_latest: finished checkpoints to keep, all by default.
        files: further text files of the checkpoint, name -> content.

    Returns:
        The folder written.
    """
    folder = iteration_folder(root, state.iteration)
    temporary = root / f".{folder.name}.writing"
    if dist.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    metadata = _metadata()
    tensors = {"model": model.sharded_state_dict(metadata=metadata)}  # type: ignore[operator]
    tensors["optimizer"] = optimizer_state.state_to_save(optimizer, tensors["model"], metadata)
    _hand_over_within_this_process()
    dist_checkpointing.save(tensors, str(temporary))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.copytree(hf_source / HF_FOLDER, temporary / HF_FOLDER)
        _write_json(temporary / TRAINING_STATE, vars(state))
        for name, content in (files or {}).items():
            _write_text(temporary / name, content)
        _write_json(temporary / DESCRIPTION, _description(state.iteration, model))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        _write_text(root / LATEST, f"{state.iteration}\n")
        _prune(root, state.iteration, keep_latest)
    dist.barrier()
    return folder


def load_training(folder: Path, model: nn.Module, optimizer: MegatronOptimizer) -> TrainingState:
    """Load a training checkpoint into model and optimizer, whatever layout wrote it.

    Raises:
        CheckpointError: the folder is incomplete, unsafe, or of another model.
    """
    state = read_training_state(folder)
    _vet_once(folder)
    metadata = _metadata()
    tensors = {"model": model.sharded_state_dict(metadata=metadata)}  # type: ignore[operator]
    tensors["optimizer"] = optimizer_state.state_to_load(optimizer, tensors["model"], metadata)
    loaded = _load(tensors, folder)
    model.load_state_dict(loaded["model"])
    optimizer_state.load_state(optimizer, loaded["optimizer"])
    return state


def load_model(folder: Path, model: nn.Module) -> None:
    """Load the weights of a Megatron checkpoint folder, whatever layout wrote it.

    Raises:
        CheckpointError: the folder is incomplete, unsafe, or of another model.
    """
    _vet_once(folder)
    tensors = {"model": model.sharded_state_dict(metadata=_metadata())}  # type: ignore[operator]
    model.load_state_dict(_load(tensors, folder)["model"])


def read_training_state(folder: Path) -> TrainingState:
    """Read the JSON part of a training checkpoint."""
    path = folder / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {folder} is not a finished training checkpoint")
    try:
        return TrainingState(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def _hand_over_within_this_process() -> None:
    """Let Megatron-Core take the results of a write from a plain queue.

    Its own is held by a manager: one more Python process on every rank, which imports all of PyTorch at the first save.
    That serves writes in the background; ours are waited for in the process that asked for them.
    """
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.SimpleQueue()  # type: ignore[assignment]


def _load(tensors: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return dist_checkpointing.load(tensors, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)  # type: ignore[return-value]
    except dist_checkpointing.core.CheckpointingException as error:
        raise CheckpointError(f"{folder}: does not fit this model: {error}") from error


def _vet_once(folder: Path) -> None:
    """Vet on rank 0 and share the verdict, so that no rank goes on alone."""
    verdict: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            vet_checkpoint(folder)
        except CheckpointError as error:
            verdict = [str(error)]
    dist.broadcast_object_list(verdict, src=0)
    if verdict[0] is not None:
        raise CheckpointError(verdict[0])


def _metadata() -> dict[str, Any]:
    """Layers are stored one key each, so that stages and specs may differ between save and load."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {"non_homogeneous_layers": True, "dp_cp_group": group}


def _description(iteration: int, model: nn.Module) -> dict[str, Any]:
    dtype = str(model.config.params_dtype).removeprefix("torch.")  # type: ignore[union-attr]
    versions = {"megatron_v2pe": __version__, "torch": torch.__version__}
    return {
        "format_version": FORMAT_VERSION,
        "kind": "training",
        "iteration": iteration,
        "dtype": dtype,
        "versions": versions,
    }


def _prune(root: Path, newest: int, keep_latest: int | None) -> None:
    """Remove all but the `keep_latest` newest checkpoints up to `newest`, and what killed runs left half-written.

    A checkpoint after `newest` comes from a run that was killed before it counted; it is written again in time.
    """
    finished = sorted(path for path in root.iterdir() if re.fullmatch(r"iter_\d{7,}", path.name))
    counted = [path for path in finished if int(path.name.removeprefix("iter_")) <= newest]
    for old in counted[:-keep_latest] if keep_latest else ():
        _log.info("removing old checkpoint %s", old)
        shutil.rmtree(old)
    for stale in root.glob(".iter_*.writing"):
        shutil.rmtree(stale, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write through a temporary file and flush to disk, so that the file is never half there."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
