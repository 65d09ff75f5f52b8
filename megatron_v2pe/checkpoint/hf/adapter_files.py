"""Adapters of other programs in an HF folder: they are named as such, for nobody can convert one without its model."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of a set of changes that transformers puts on top of the weights it finds beside them."""
_ADAPTER_MARKS = (".lora_A.", ".lora_B.", ".lora_embedding_", "base_model.model.", ".adapter.", ".modules_to_save.")
"""Parts of the names of tensors that peft, or this project, gives an adapter's."""
_MODELS = ("model.safetensors", "model.safetensors.index.json")


def adapter_file(folder: Path) -> str | None:
    """Return the name of a file that says a folder holds an adapter, None where there is none."""
    return next((name for name in _ADAPTERS if os.path.lexists(folder / name)), None)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter and no model.

    Raises:
        CheckpointError: it does; says what to do.
    """
    adapter = adapter_file(folder)
    if adapter is not None and not any(os.path.lexists(folder / name) for name in _MODELS):
        raise CheckpointError(
            f"{printable(folder / adapter)}: an adapter, and no model beside it: merge it into the model it was "
            "trained for (tools/merge_adapter.py BASE ADAPTER OUT), and name that; or name the model, and it with "
            "--adapter"
        )


def is_adapter_tensor(name: str) -> bool:
    """Tell whether a tensor belongs to an adapter, by its name."""
    return any(mark in name for mark in _ADAPTER_MARKS)


def refuse_adapter_tensors(names: Collection[str], source: str) -> None:
    """Refuse tensors that are those of an unmerged adapter by their names.

    Raises:
        CheckpointError: some are; names the first, counts them, and says what to do.
    """
    found = sorted(filter(is_adapter_tensor, names))
    if found:
        raise CheckpointError(
            f"{source}: holds an unmerged adapter: {len(found)} of {len(names)} tensors, {printable(found[0])[:200]} "
            "first; merge it into the weights (peft's merge_and_unload, then save_pretrained), and convert the result"
        )
