"""Where a run starts from: a Megatron checkpoint, or an HF folder that is converted to one, once for all tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_v2pe.checkpoint.folder import HF_FOLDER
from megatron_v2pe.checkpoint.place import CONFIG, find_checkpoint
from megatron_v2pe.checkpoint.trained import trained_config
from megatron_v2pe.checkpoint.vet import verify_side_files
from megatron_v2pe.convert.cached import conversions, converted
from megatron_v2pe.convert.hf_config import to_text
from megatron_v2pe.device.agreement import on_first_rank
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.models.config import read_config


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
        cache: where converted HF checkpoints are kept, see `convert.cached.conversions`.
        verify: compare the checksums of the folder's small files; those of tensors are compared when they are loaded.
        others: further folders in which a conversion may be found.

    Raises:
        ConfigError: `source` is neither.
        CheckpointError: the conversion found something wrong, or a file is damaged.
    """
    found: list[str | None] = [on_first_rank(lambda: str(_find(source, cache, others)))]
    dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    folder = Path(found[0])
    if verify:
        on_first_rank(lambda: verify_side_files(folder))
    return folder


def _find(source: str, cache: str | Path | None, others: Sequence[Path]) -> Path:
    place = find_checkpoint(source, "model.model_name_or_path")
    return converted(place.folder, conversions(cache), others) if place.is_hf else place.folder


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
