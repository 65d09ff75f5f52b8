"""What a folder is that a user names: an HF checkpoint, a Megatron checkpoint, or a training run and which part of it.

Every tool asks here, so that what one of them takes is taken by all. A run stands for its newest checkpoint, `RUN/best`
for the best by its validation, `hf/` of a Megatron checkpoint for that checkpoint. How a checkpoint was trained is
answered by `trained`; an HF folder becomes a Megatron checkpoint in `conversions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.best import BEST, BestCheckpoints
from megatron_v2pe.checkpoint.folder import (
    DESCRIPTION,
    HF_FOLDER,
    HF_LAYOUT,
    METADATA,
    TRAINING_STATE,
    iteration_folder,
    iterations,
    newest,
)
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable

_log = get_logger(__name__)
CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_MOST_NAMED = 5


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that was found."""

    folder: Path
    """The HF folder, or the folder of one Megatron checkpoint."""
    is_hf: bool
    """Whether it is in the HF layout."""

    @classmethod
    def of(cls, folder: Path) -> FoundCheckpoint:
        """Return the place of a folder that is known to be one checkpoint."""
        return cls(folder, is_hf=(folder / CONFIG).is_file() and not (folder / DESCRIPTION).is_file())

    @property
    def hf(self) -> Path:
        """Folder of its `config.json` and tokenizer."""
        return self.folder if self.is_hf else self.folder / HF_FOLDER


def find_checkpoint(path: str | Path, said: str) -> FoundCheckpoint:
    """Return the checkpoint a user means by a folder; nothing of it is read but what names a run's newest one.

    Args:
        path: an HF folder, a Megatron checkpoint (converted, or `iter_*` of a run), its `hf/`, or a training run.
        said: how the user has named it, for messages: `--checkpoint`, `model.model_name_or_path`.

    Raises:
        ConfigError: it is none of these, or two of them at once; says what it holds and what to name instead.
        CheckpointError: a run that names a checkpoint which is not there.
    """
    folder = Path(path)
    found = look_for_checkpoint(folder, said)
    if found is not None:
        return found
    shown = f"{said} {printable(folder)}"
    if not folder.exists():
        raise ConfigError(f"{shown}: no such folder{instead_of_missing(folder)}")
    if not folder.is_dir():
        raise ConfigError(f"{shown}: a file, expected the folder of a checkpoint: {printable(folder.parent)}?")
    raise ConfigError(
        f"{shown}: holds neither config.json (an HF checkpoint) nor {DESCRIPTION} (a Megatron checkpoint) nor iter_* "
        f"(the checkpoints of a training run){_instead_of(folder)}"
    )


def look_for_checkpoint(folder: Path, said: str) -> FoundCheckpoint | None:
    """Return what `find_checkpoint` does, but None where there is no checkpoint; all else is as there."""
    if not folder.is_dir():
        best = None if folder.exists() or folder.name != BEST else best_of(folder.parent)
        return None if best is None else FoundCheckpoint(best, is_hf=False)
    whole = (folder / DESCRIPTION).is_file() or ((folder / METADATA).is_file() and (folder / HF_FOLDER).is_dir())
    kinds = [DESCRIPTION] if whole else []  # without it, whoever vets the folder says what is missing
    if not kinds and (there := iterations(folder)):
        kinds = [f"iter_{there[-1]:07d}"]
    if (folder / CONFIG).is_file():
        if not kinds:
            inside = (folder / HF_LAYOUT).is_file() and (folder.parent / DESCRIPTION).is_file()
            return FoundCheckpoint(folder.parent, is_hf=False) if inside else FoundCheckpoint(folder, is_hf=True)
        if has_weights(folder):
            raise ConfigError(
                f"{said} {printable(folder)}: holds both {CONFIG} with weights (an HF checkpoint) and {kinds[0]} (a "
                "Megatron one); which of them is meant cannot be told: move one of the two into a folder of its own"
            )
    if DESCRIPTION in kinds:
        return FoundCheckpoint(folder, is_hf=False)
    latest = newest(folder)  # also where there is none: a file that names one that is gone is an error
    return None if latest is None else FoundCheckpoint(latest, is_hf=False)


def best_of(run: Path) -> Path | None:
    """Return the best checkpoint of a run by its validation, None where none has been validated and kept.

    Raises:
        CheckpointError: the file that says which is damaged.
    """
    best = replace(BestCheckpoints.read(run), keep=1).best(iterations(run))
    return iteration_folder(run, best[0]) if best else None


def resume_folder(save: str | None, load: str | None, resume: str) -> Path | None:
    """Return the training checkpoint a run goes on from, None where it begins.

    Args:
        save: folder of the run, `checkpoint.save`.
        load: the checkpoint it is asked to go on from where its own folder holds none, `checkpoint.load`.
        resume: `auto` or `never`, `checkpoint.resume`.

    Raises:
        ConfigError: there is one and the run may not go on, or `load` names none.
        CheckpointError: the run's folder names a checkpoint that is not there.
    """
    if save and (latest := newest(Path(save))) is not None:
        if resume == "never":
            raise ConfigError(f"{latest} is there and checkpoint.resume is never; choose another checkpoint.save")
        if load is not None:
            _log.warning("checkpoint.load %s is not read: the run goes on from %s", load, latest)
        return latest
    if load is None:
        return None
    place = find_checkpoint(load, "checkpoint.load")
    if place.is_hf or not (place.folder / TRAINING_STATE).is_file():
        raise ConfigError(
            f"checkpoint.load {printable(load)}: holds weights and no training checkpoint; to start from its "
            "weights, name it as model.model_name_or_path"
        )
    return place.folder


def hf_folder(checkpoint: Path) -> Path:
    """Return the folder with config and tokenizer of a Megatron checkpoint."""
    folder = checkpoint / HF_FOLDER
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder / CONFIG}: missing; {checkpoint} is not a checkpoint of this project")
    return folder


def has_weights(folder: Path) -> bool:
    """Tell whether an HF folder holds weights, or their index."""
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)


def instead_of_missing(folder: Path) -> str:
    """Return where a folder that is not there may come from, as the end of a message; "" where nothing is known."""
    name = str(folder)
    if folder.name.startswith("InternVL") and printable(name) == name:
        return f"; to fetch it: huggingface-cli download OpenGVLab/{folder.name} --local-dir {name}"
    if folder.parent.name == "work_dirs":  # where recipes save, and where later stages start
        return "; a run's folder is there once it has saved: train that run first, or name another checkpoint"
    parent = next((one for one in folder.parents if one.is_dir()), None)
    there = "" if parent is None or parent == folder.parent else f"; there is no {printable(folder.parent)} either"
    named = _named(parent) if parent is not None and parent == folder.parent else []
    return f"{there}{_listed(folder.parent, named)}" or "; expected an HF checkpoint, a Megatron checkpoint, or a run"


def _instead_of(folder: Path) -> str:
    """Return which checkpoints lie in a folder that is none."""
    if (folder / "adapter_config.json").is_file():
        return (
            "; it is an adapter: name the model that it belongs to here, and it with --adapter, or merge it "
            "(tools/merge_adapter.py BASE ADAPTER OUT)"
        )
    if (folder / "logs").is_dir():
        return "; a training run that has saved nothing yet (checkpoint.save_interval), or whose saving failed"
    return _listed(folder, _named(folder))


def _listed(folder: Path, named: list[str]) -> str:
    if not named:
        return ""
    more = ", ..." if len(named) > _MOST_NAMED else ""
    return f"; checkpoints in {printable(folder)}: {', '.join(named[:_MOST_NAMED])}{more}"


def _named(folder: Path) -> list[str]:
    """Return the checkpoints that lie in a folder, by name."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [
        printable(path.name)
        for path in inner
        if any((path / name).is_file() for name in (CONFIG, DESCRIPTION)) or iterations(path)
    ]
