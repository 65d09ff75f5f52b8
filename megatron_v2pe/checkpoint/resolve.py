"""Where a run starts from: a Megatron checkpoint, or an HF folder that is converted to one, once for all tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.conversions import conversions, converted
from megatron_v2pe.checkpoint.folder import HF_FOLDER, TRAINING_STATE, newest
from megatron_v2pe.checkpoint.hf.hf_config import to_text
from megatron_v2pe.checkpoint.place import CONFIG, find_checkpoint
from megatron_v2pe.checkpoint.trained import trained_config
from megatron_v2pe.checkpoint.vet import verify_side_files
from megatron_v2pe.device.rank_errors import run_on_first_rank, share_from_first_rank
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import read_config

_log = get_logger(__name__)


def start_folder(
    source: str,
    cache: str | Path | None,
    verify: bool = True,
    others: Sequence[Path] = (),
) -> Path:
    """Return the Megatron checkpoint folder to start from, converting an HF folder on rank 0 where needed.

    Every rank calls this; an error on rank 0 is raised on all. Its configuration and tokenizer may be read after this.

    Args:
        source: an HF InternVL2 folder, a Megatron checkpoint folder, or a training run's folder.
        cache: where converted HF checkpoints are kept, see `checkpoint.conversions.conversions`.
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


def _find(source: str, cache: str | Path | None, others: Sequence[Path]) -> Path:
    place = find_checkpoint(source, "model.model_name_or_path")
    return converted(place.folder, conversions(cache), others) if place.is_hf else place.folder


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


def start_config(checkpoint: Path) -> dict[str, str]:
    """Return the `config.json` for checkpoints of a run, where it is not that of the one the run starts from: a run's.

    What a run does not say, its checkpoints are to say as the model it started from was trained.

    Returns:
        Name of the file -> content; nothing where the file is copied as it is.
    """
    stated = trained_config(checkpoint)
    if stated == read_config(checkpoint / HF_FOLDER):
        return {}
    return {f"{HF_FOLDER}/{CONFIG}": to_text(stated)}


def hf_folder(checkpoint: Path) -> Path:
    """Return the folder with config and tokenizer of a Megatron checkpoint."""
    folder = checkpoint / HF_FOLDER
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'}: missing; {checkpoint} is not a checkpoint of this project")
    return folder
