"""An adapter that a user names, whoever wrote it, read for a base, and held against it."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter
from megatron_v2pe.checkpoint.low_rank.peft_folder import is_peft_folder, read_peft
from megatron_v2pe.checkpoint.resolve import FoundCheckpoint
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig

_log = get_logger(__name__)


def open_adapter(folder: Path, base: FoundCheckpoint, model: InternVLConfig, said: str, verify: bool = True) -> Adapter:
    """Read an adapter.

    Args:
        folder: PEFT's, with `adapter_config.json`.
        base: the checkpoint that is to be changed by it.
        model: of the base.
        said: how the user has named the adapter, for messages.
        verify: compare checksums.

    Raises:
        ConfigError: no such folder, or one that holds no adapter.
        CheckpointError: it is damaged, does not fit the model's shapes, or is of another base.
    """
    shown = f"{said} {printable(folder)}"
    if not folder.exists():
        raise ConfigError(f"{shown}: no such folder")
    if not is_peft_folder(folder):
        raise ConfigError(f"{shown}: holds no adapter: no adapter_config.json (PEFT's), and no run that trained one")
    return read_peft(folder, model)
