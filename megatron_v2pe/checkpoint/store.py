"""Training checkpoints: written so that a kill at any moment leaves the previous one usable, resumed in any layout.

`<root>/iter_0000050/` is a self-contained Megatron checkpoint folder: the distributed tensors (`torch_dist`), `hf/`
(config, tokenizer and layout of the HF checkpoint it descends from), `checkpoint.json`, `training_state.json`, and
`checksums.json` over all of it. It is written under a temporary name and renamed when every rank has finished;
`latest_checkpointed_iteration.txt` moves only after that. What fails half-way is removed on the spot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from torch import nn

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.whole_files import naming, write_text
from megatron_v2pe.checkpoint import optimizer_state, sharded
from megatron_v2pe.checkpoint.checksums import Checksums, FileSum, sums_of_files
from megatron_v2pe.checkpoint.description import Written, write_description
from megatron_v2pe.checkpoint.folder import (
    AVERAGED,
    DESCRIPTION,
    FORMAT_VERSION,
    HF_FOLDER,
    TRAINING_STATE,
    iteration_folder,
    iteration_of,
    put_in_place_as_newest,
)
from megatron_v2pe.checkpoint.growth import GrownReader, Growth
from megatron_v2pe.checkpoint.hf.table import TABLES
from megatron_v2pe.checkpoint.stored_rows import cut_to_rows, reader_of_all_rows
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader
from megatron_v2pe.checkpoint.vet import vet_checkpoint
from megatron_v2pe.checkpoint.weight_average import average_of
from megatron_v2pe.checkpoint.writer import CheckpointWriter, SynchronousWriter
from megatron_v2pe.device.rank_errors import raise_on_all_ranks, run_on_first_rank
from megatron_v2pe.errors import CheckpointError, SpaceError
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.text import read_json
from megatron_v2pe.models import padding
from megatron_v2pe.version import __version__

ADAPTER = ".adapter."
"""Stands in the name of every tensor of an adapter (`models/linear.py`)."""
_log = get_logger(__name__)
_BESIDE = 1 << 20
"""About the bytes of what lies beside the tensors; only the check of the disk's free space needs it."""


@dataclass(frozen=True)
class TrainingState:
    """What a resumed run needs beside tensors; plain JSON."""

    iteration: Annotated[int, Range(0)]
    """Steps done."""
    loader: dict[str, Any]
    """State of the data loader: what has been consumed."""
    settings: dict[str, Any]
    """The resolved configuration of the run."""
    after_steps: dict[str, Any] = field(default_factory=dict)
    """State of what the run does between steps, such as validation."""


def save(
    root: Path,
    model: nn.Module,
    optimizer: MegatronOptimizer,
    state: TrainingState,
    hf_source: Path,
    keep_latest: int | None = None,
    files: Mapping[str, str] | None = None,
    learned_only: bool = False,
    table_rows: range | None = None,
) -> Path:
    """Write a checkpoint and wait until it is in place; every rank calls this.

    Args:
        root: folder of the run's checkpoints.
        model: this rank's stage (unwrapped).
        optimizer: its optimizer.
        state: what else a resumed run needs.
        hf_source: folder whose `hf/` describes the HF checkpoint this run descends from.
        keep_latest: finished checkpoints to keep, all by default.
        files: further text files of the checkpoint, name -> content; also in place of one of `hf/`.
        learned_only: leave out what does not learn, see `begin_save`.
        table_rows: of the vocabulary's tables store these rows alone, see `stored_rows`, and those whether they learn
            or not.

    Returns:
        The folder written.
    """
    writer, source = SynchronousWriter(), hf_source
    saved = begin_save(root, model, optimizer, state, source, keep_latest, files, writer, learned_only, table_rows)
    return saved.commit()


def begin_save(
    root: Path,
    model: nn.Module,
    optimizer: MegatronOptimizer,
    state: TrainingState,
    hf_source: Path,
    keep_latest: int | None,
    files: Mapping[str, str] | None,
    writer: CheckpointWriter,
    learned_only: bool = False,
    table_rows: range | None = None,
) -> SaveInProgress:
    """Hand the tensors of model and optimizer to a writer; every rank calls this, and later `commit`.

    `writer` takes this rank's parts of the tensors. With `learned_only` those of the model that do not learn are left
    out: a run with adapters, whose base is stored elsewhere. The other arguments are those of `save`.
    """
    folder = iteration_folder(root, state.iteration)
    temporary = root / f".{folder.name}.writing"
    raise_on_all_ranks(lambda: padding.check(model))
    metadata = _metadata()
    tensors: dict[str, Any] = {"model": _model_state(model, metadata, learned_only, table_rows)}
    tensors["optimizer"] = optimizer_state.state_to_save(optimizer, tensors["model"], metadata)
    if (average := average_of(optimizer)) is not None:
        tensors["ema"] = average.described(tensors["model"], for_loading=False)
    parts, common = sharded.parts_to_save(tensors)
    if table_rows is not None:
        parts = cut_to_rows(parts, table_rows)
    size = sharded.bytes_of(parts, next(model.parameters()).device)
    run_on_first_rank(lambda: _begin(temporary, size + _BESIDE))
    with _removed_on_error(temporary):
        raise_on_all_ranks(lambda: _hand_over(writer, temporary, parts))
    description = _description(state.iteration, model)
    return SaveInProgress(
        writer,
        temporary,
        folder,
        lambda written: _finish(temporary, written, common, state, description, hf_source, files),
        keep_latest,
    )


@dataclass(frozen=True)
class SaveInProgress:
    """A checkpoint whose tensors a writer has taken; it counts only when `commit` has returned."""

    writer: CheckpointWriter
    temporary: Path
    """Folder it is written to."""
    folder: Path
    """Folder it becomes."""
    finish: Callable[[Written], None]
    """Writes what lies beside the tensors, on the first rank."""
    keep_latest: int | None

    def commit(self) -> Path:
        """Wait until the tensors are on the disk, then put the checkpoint in place; every rank calls this.

        Returns:
            The folder written.
        """
        with _removed_on_error(self.temporary):
            written = _gathered(raise_on_all_ranks(lambda: _written(self.writer, self.temporary)))
            run_on_first_rank(lambda: self.finish(written))
        run_on_first_rank(lambda: put_in_place_as_newest(self.temporary, self.folder, self.keep_latest))
        return self.folder


@contextmanager
def _removed_on_error(temporary: Path) -> Generator[None, None, None]:
    """Remove a half-written checkpoint when something fails: it would keep the disk full."""
    try:
        yield
    except BaseException:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_training(
    folder: Path,
    model: nn.Module,
    optimizer: MegatronOptimizer,
    verify: bool = True,
    learned_only: bool = False,
    table_rows: range | None = None,
) -> TrainingState:
    """Load a training checkpoint into model and optimizer, whatever layout wrote it.

    Args:
        folder: of the checkpoint.
        model: this rank's stage (unwrapped).
        optimizer: its optimizer.
        verify: compare checksums.
        learned_only: the folder holds what learns alone; all else stays as it is.
        table_rows: the folder holds of the vocabulary's tables these rows alone, see `save`.

    Raises:
        CheckpointError: the folder is incomplete, damaged, unsafe, or of another model.
    """
    reader = _vet(folder, verify)
    state = raise_on_all_ranks(lambda: read_training_state(folder))
    metadata = _metadata()
    tensors: dict[str, Any] = {"model": _model_state(model, metadata, learned_only, table_rows)}
    if table_rows is not None:
        reader = reader_of_all_rows(reader, model, table_rows)
    tensors["optimizer"] = optimizer_state.state_to_load(optimizer, tensors["model"], metadata)
    if learned_only:
        _check_all_are_wanted(tensors["model"], reader, folder)
    average, is_averaged = average_of(optimizer), any(key.startswith(AVERAGED) for key in reader.tensors)
    if average is not None and is_averaged:
        tensors["ema"] = average.described(tensors["model"], for_loading=True)
    loaded = sharded.load(tensors, reader, folder)
    model.load_state_dict(loaded["model"], strict=not learned_only)
    raise_on_all_ranks(lambda: _load_optimizer(optimizer, loaded, folder))
    if average is not None and is_averaged:
        average.load(loaded.get("ema", {}))
    elif average is not None:
        if dist.get_rank() == 0:
            _log.warning("%s holds no average of weights (EMA): one begins here, with the weights as they are", folder)
        average.restart()
    return state


def load_model(folder: Path, model: nn.Module, verify: bool = True, growth: Growth | None = None) -> None:
    """Load the weights of a Megatron checkpoint folder, whatever layout wrote it.

    Adapters of the model (`models/adapters.py`) are loaded where the folder holds some, and stay as they are where it
    holds none, as the model does that a run with adapters starts from.

    Args:
        folder: of the checkpoint.
        model: this rank's stage (unwrapped).
        verify: compare checksums.
        growth: new tokens that the model has rows for and the folder has not.

    Raises:
        CheckpointError: the folder is incomplete, damaged, unsafe, of another model, or of one with adapters.
    """
    reader = _vet(folder, verify)
    if growth is not None:
        found = reader
        reader = raise_on_all_ranks(lambda: GrownReader(found, growth))
    stored, own = any(ADAPTER in key for key in reader.tensors), any(ADAPTER in key for key in model.state_dict())
    if stored:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)  # a pipeline stage may hold none of the linears that have adapters
        if not any(everyone):
            raise CheckpointError(
                f"{folder}: holds adapters beside its linears, and this model has none: "
                "merge them first (tools/merge_adapter.py BASE ADAPTER OUT), and name what that gives"
            )
    tensors = {"model": model.sharded_state_dict(metadata=_metadata() | {"adapters": stored})}  # type: ignore[operator]
    model.load_state_dict(sharded.load(tensors, reader, folder)["model"], strict=stored or not own)


def read_training_state(folder: Path) -> TrainingState:
    """Read the JSON part of a training checkpoint.

    Raises:
        CheckpointError: it is missing or damaged, or of another step than its folder's name says.
    """
    path = folder / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {folder} is not a finished training checkpoint")
    state = typed(TrainingState, read_json(path, CheckpointError), str(path), CheckpointError)
    named = iteration_of(folder)
    if named is not None and named != state.iteration:
        raise CheckpointError(f"{path}: damaged: iteration {state.iteration} in a folder called {folder.name}")
    return state


def load_adapters(folder: Path, model: nn.Module, verify: bool = True) -> None:
    """Load what a checkpoint with adapters holds into a model that has its base's weights; every rank calls this.

    Args:
        folder: of the checkpoint, which has an `AdapterPointer`.
        model: this rank's stage (unwrapped), with the pointer's adapters applied.
        verify: compare checksums.

    Raises:
        CheckpointError: the folder is incomplete, damaged, unsafe, or of another model.
    """
    reader = _vet(folder, verify)
    state = model.sharded_state_dict(metadata=_metadata())  # type: ignore[operator]
    held = {name: entry for name, entry in state.items() if getattr(entry, "key", None) in reader.tensors}
    model.load_state_dict(sharded.load({"model": held}, reader, folder)["model"], strict=False)


def _model_state(
    model: nn.Module, metadata: dict[str, Any], learned_only: bool, table_rows: range | None = None
) -> dict[str, Any]:
    """Return what a distributed checkpoint stores of a model."""
    state = model.sharded_state_dict(metadata=metadata)  # type: ignore[operator]
    if not learned_only:
        return state
    also = TABLES if table_rows is not None else ()
    return {
        name: entry
        for name, entry in state.items()
        if getattr(_entry_data(entry), "requires_grad", False) or getattr(entry, "key", None) in also
    }


def _entry_data(entry: Any) -> torch.Tensor | None:
    """Return the parameter that an entry of a sharded state describes, None of what is no tensor."""
    data = getattr(entry, "data", None)
    return data if isinstance(data, torch.Tensor) else None


def _check_all_are_wanted(state: dict[str, Any], reader: TorchDistReader, folder: Path) -> None:
    """Check that a run goes on training all that a checkpoint of what learns holds; every rank calls this."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [entry.key for entry in state.values()])
    stored = {key for key in reader.tensors if not key.startswith(("optimizer.", AVERAGED))}
    if left := sorted(stored.difference(*everyone)):
        raise CheckpointError(
            f"{folder}: holds {len(left)} trained tensors that this run keeps as its base has them, such as {left[0]}; "
            "go on with the freeze settings and adapters that it was trained with"
        )


def _load_optimizer(optimizer: MegatronOptimizer, loaded: Mapping[str, Any], folder: Path) -> None:
    try:
        optimizer_state.load_state(optimizer, loaded["optimizer"])
    except Exception as error:  # Megatron-Core raises anything on settings it does not know
        message = f"{folder}: damaged: the optimizer's settings: {type(error).__name__}: {error}"
        raise CheckpointError(message) from error


def _vet(folder: Path, verify: bool) -> TorchDistReader:
    """Vet a folder on every rank, its shared files on the first rank alone; an error of one rank is raised on all."""
    reader = raise_on_all_ranks(lambda: vet_checkpoint(folder, verify, files=dist.get_rank() == 0))
    return reader


def _begin(temporary: Path, size: int) -> None:
    """Remove what killed runs left half-written; make the folder to write to, if the disk has room for the tensors."""
    root = temporary.parent
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".iter_*.writing"):
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(root).free
    if size > free:
        raise SpaceError(
            f"{temporary}: a checkpoint takes about {size} bytes, {free} are free; make room and run the same command "
            "again"
        )
    temporary.mkdir()


def _hand_over(writer: CheckpointWriter, temporary: Path, parts: list[Any]) -> None:
    with naming(temporary):
        writer.begin(temporary, parts)


def _written(writer: CheckpointWriter, temporary: Path) -> Written:
    with naming(temporary):
        return writer.wait()


def _gathered(written: Written) -> Written:
    """Return on rank 0 what all ranks have written; every rank calls this."""
    everyone: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(written, everyone, dst=0)
    total = Written()
    for theirs in everyone or ():
        total.merge(theirs)
    return total


def _finish(
    temporary: Path,
    written: Written,
    common: Any,
    state: TrainingState,
    description: Mapping[str, Any],
    hf_source: Path,
    files: Mapping[str, str] | None,
) -> None:
    """Write what lies beside the tensors, checksums last."""
    for key, tensor in written.tensors.items():  # parts without padding differ in size: Megatron-Core checks nothing
        held = sum(prod(shard.sizes) for shard in tensor.shards)
        assert held == prod(tensor.size), f"{key}: ranks wrote {held} values of {list(tensor.size)}"
    with naming(temporary):
        write_description(temporary, written, common)
        _copy(hf_source / HF_FOLDER, temporary / HF_FOLDER)
        _write_json(temporary / TRAINING_STATE, asdict(state))
        for name, content in (files or {}).items():
            write_text(temporary / name, content, durable=True)
        _write_json(temporary / DESCRIPTION, description)
        sums = sums_of_files(temporary, but=written.sizes)
        _check_copies(sums, hf_source, files or {})
        Checksums({**written.file_sums(), **sums}).write(temporary)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder's files; unlike `shutil.copytree`, one that fails ends it, with its own error."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            content = path.read_bytes()
            with naming(copy):
                copy.write_bytes(content)


def _check_copies(sums: Mapping[str, FileSum], hf_source: Path, changed: Mapping[str, str]) -> None:
    """Compare the copies of `hf/` with the checksums of the checkpoint they come from: it may be damaged by now."""
    known = Checksums.read(hf_source) or Checksums()
    for name, found in sums.items():
        if name.startswith(f"{HF_FOLDER}/") and name not in changed and known.files.get(name, found) != found:
            raise CheckpointError(f"{hf_source / name}: damaged since the run began; copy the checkpoint again")


def _metadata() -> dict[str, Any]:
    """Return what Megatron-Core needs to store each layer under its own key: stages and specs may differ at load."""
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


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=True)
