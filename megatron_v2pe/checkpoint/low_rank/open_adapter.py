"""An adapter that a user names, whoever wrote it: PEFT's folder, a run, or weights that hold one among them."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.checkpoint.folder import ADAPTER_FILE, HF_FOLDER
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.peft_folder import is_peft_folder, read_peft
from megatron_v2pe.checkpoint.low_rank.run_adapter import read_run
from megatron_v2pe.checkpoint.low_rank.unmerged import open_weights
from megatron_v2pe.checkpoint.resolve import FoundCheckpoint, look_for_checkpoint
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config

_EXPECTED = "expected adapter_config.json (PEFT's) or adapter.json (in iter_* of a run that trained one)"


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder is one checkpoint of a run that trained an adapter."""
    return (folder / ADAPTER_FILE).is_file()


def open_adapter(
    folder: Path, model: InternVLConfig, said: str, verify: bool = True, averaged: bool = False
) -> Adapter:
    """Read an adapter for a base.

    Args:
        folder: PEFT's, one of a run, or the run's, whose newest checkpoint is taken.
        model: of the base.
        said: how the user has named the adapter, for messages.
        verify: compare checksums.
        averaged: take the moving average (EMA) of what a run has learned.

    Raises:
        ConfigError: no such folder, or one that holds no adapter.
        CheckpointError: it is damaged, does not fit the model's shapes, or holds no average where that is asked for.
    """
    place = _place(folder, said)
    if place is None:
        if averaged:
            raise CheckpointError(
                f"{said} {printable(folder)}: a PEFT folder holds no average of weights (EMA); name the run that "
                "trained it, or take the weights themselves"
            )
        return read_peft(folder, model)
    if not is_adapter(place.folder):
        raise ConfigError(f"{said} {printable(folder)}: a whole model, and no adapter; {_EXPECTED}")
    adapter = read_run(place.folder, verify, averaged)
    shapes = {row.key: row.key_shape for row in mapping_table(model).tensors}
    for row in adapter.table.tensors:
        if shapes.get(row.key) != row.key_shape:
            found = shapes.get(row.key)
            raise CheckpointError(
                f"{adapter.source}: {row.key} has shape {list(row.key_shape)} in the adapter's base, "
                f"{'none' if found is None else list(found)} in this one: it is an adapter for another base"
            )
    return adapter


def open_own(folder: Path, verify: bool = True, averaged: bool = False) -> tuple[Adapter, InternVLConfig, str]:
    """Read an adapter that says itself which model it is for.

    Args:
        folder: of a run that trained one, or an HF folder of the published code with one among its weights.
        verify: compare checksums.
        averaged: take the moving average (EMA) of what a run has learned.

    Returns:
        The adapter, the model, and the layout of its base.

    Raises:
        ConfigError: there is none.
        CheckpointError: it is damaged, or holds no average where that is asked for.
    """
    place = _place(folder, "SOURCE")
    if place is None:
        raise ConfigError(f"SOURCE {printable(folder)}: it is a PEFT folder already, and does not hold its model")
    if place.is_hf:
        opened = open_weights(place.folder)
        model = InternVLConfig.from_hf(opened.config, printable(folder / "config.json"))
        if opened.halves is None:
            raise ConfigError(f"SOURCE {printable(folder)}: its weights hold no adapter")
        if averaged:
            raise CheckpointError(
                f"{printable(folder)}: an HF folder holds no average of weights (EMA): take the weights themselves "
                "(--weights model)"
            )
        return opened.adapter(model, place.folder), model, layout_of(place.folder)
    if not is_adapter(place.folder):
        raise ConfigError(f"SOURCE {printable(folder)}: a whole model, and no adapter; {_EXPECTED}")
    hf = place.folder / HF_FOLDER
    model = InternVLConfig.from_hf(read_config(hf), printable(hf / "config.json"))
    return read_run(place.folder, verify, averaged), model, layout_of(hf)


def _place(folder: Path, said: str) -> FoundCheckpoint | None:
    """Return the checkpoint that a folder is, None where it is PEFT's."""
    found = look_for_checkpoint(folder, said)  # `RUN/best` is no folder, and names one
    if found is None and not folder.exists():
        raise ConfigError(f"{said} {printable(folder)}: no such folder")
    if found is not None and not (found.is_hf and is_peft_folder(folder)):
        return found
    if is_peft_folder(folder):
        return None
    raise ConfigError(f"{said} {printable(folder)}: holds no adapter; {_EXPECTED}")
