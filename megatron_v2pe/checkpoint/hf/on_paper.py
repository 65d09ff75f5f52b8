"""A checkpoint of which weights are not there: a `config.json`, with an index or without, or a preset; for plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.checkpoint.hf.budget import bytes_in
from megatron_v2pe.checkpoint.hf.folder import SINGLE, FileLayout, weight_map
from megatron_v2pe.checkpoint.hf.hf_to_mcore import open_folder
from megatron_v2pe.checkpoint.hf.mcore_to_hf import open_export
from megatron_v2pe.checkpoint.hf.open_source import CONFIG, OpenSource
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.plan import ConversionPlan
from megatron_v2pe.checkpoint.hf.relayout import DEFAULT_SHARD, cut
from megatron_v2pe.checkpoint.hf.row_sources import RowsOfKey
from megatron_v2pe.checkpoint.hf.safetensors_io import header_of
from megatron_v2pe.checkpoint.hf.table import mapping_table
from megatron_v2pe.checkpoint.hf.to_hf import new_files
from megatron_v2pe.checkpoint.hf.to_mcore import retyped
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config
from megatron_v2pe.models.native_config import ORIGINAL
from megatron_v2pe.models.presets import preset_config

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _NoRows:
    """Types and shapes of tensors that nobody can read."""

    def __init__(self, keys: Mapping[str, RowsOfKey]) -> None:
        self.keys = keys

    def read(self, key: str, first_row: int, out: memoryview) -> None:
        """Refuse: there is nothing."""
        raise CheckpointError(f"{key}: its checkpoint has no weights here")


def open_on_paper(source: Path | None, preset: str | None = None) -> OpenSource:
    """Open a checkpoint without weights: a folder with `config.json` and perhaps an index, or a preset.

    Raises:
        ConfigError: an architecture that is not supported, or an unknown preset.
        CheckpointError: the index lists other tensors than those of the architecture.
    """
    if preset is not None:
        config, layout, names, folder = preset_config(preset), ORIGINAL, None, Path(preset)
    else:
        assert source is not None
        config, layout, names, folder = read_config(source), layout_of(source), weight_map(source), source
    model = InternVLConfig.from_hf(config, printable(folder / CONFIG))
    table = mapping_table(model, layout, names or ())
    dtype = _type_of(config)
    if names is None:
        files = cut(((row.name, row.shape, dtype) for row in table.tensors), bytes_in(DEFAULT_SHARD, "size"))
    else:
        table.check_names(names, printable(folder))
        rows = table.by_name()
        shards = {file: [name for name, other in names.items() if other == file] for file in set(names.values())}
        files = FileLayout(
            tuple((file, header_of((n, rows[n].shape, dtype) for n in shards[file])) for file in sorted(shards))
        )
    keys = {row.key: RowsOfKey(dtype, row.key_shape) for row in table.tensors}
    return OpenSource(folder, folder, True, model, layout, table, files, _NoRows(keys), None)


def plan_conversion(command: str, source: Path | None, target: Path, options: Options, preset: str | None) -> list[str]:
    """Return in words what a conversion will read, write and hold; nothing is written.

    Args:
        command: `hf-to-mcore` and its like.
        source: the checkpoint; an HF folder may be without weights.
        target: folder to create.
        options: what is asked.
        preset: a preset in place of a source.

    Raises:
        ConfigError: an architecture that is not supported, or an unknown preset.
        CheckpointError: the source is incomplete or damaged.
    """
    remark = []
    if preset is not None:
        opened = open_on_paper(None, preset)
        remark = ["the source is a preset: sizes follow from its published shape"]
    elif command.startswith("mcore"):
        assert source is not None
        opened = open_export(source, options)
    elif source is not None and not has_shards(source):
        opened = open_on_paper(source)
        remark = ["the weights are not there: sizes follow from config.json; the conversion would be refused"]
    else:
        assert source is not None
        opened = open_folder(source)
    to_mcore = command.endswith("to-mcore")
    files = retyped(opened, options) if to_mcore else new_files(opened, options)
    return [*ConversionPlan.of(opened, target, options, files, to_mcore).lines(), *remark]


def has_shards(folder: Path) -> bool:
    """Tell whether the weight files of an HF folder are there, as far as its index or its one file says."""
    names = weight_map(folder)
    files = {SINGLE} if names is None else set(names.values())
    return all((folder / file).is_file() for file in files) or not (folder / CONFIG).is_file()


def _type_of(config: Mapping[str, Any]) -> torch.dtype:
    """Return the type that `config.json` states for the weights; bfloat16, which all published ones have, if none."""
    stated = config.get("torch_dtype") or config.get("dtype")
    return _TYPES.get(str(stated), torch.bfloat16)
