"""An HF InternVL folder, in either layout, becomes a Megatron-Core checkpoint folder."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.folder import HF_LAYOUT
from megatron_v2pe.checkpoint.hf.open_source import OpenSource, check_copies, open_hf
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.checkpoint.hf.to_mcore import write_megatron
from megatron_v2pe.checkpoint.resolve import instead_of_missing, look_for_checkpoint
from megatron_v2pe.checkpoint.trained import has_v2pe_scaling, trained_config
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import read_config

_log = get_logger(__name__)


def hf_to_mcore(
    source: Path,
    folder: Path,
    overwrite: bool = False,
    *,
    refuse_non_finite: bool = True,
    dtype: str | None = None,
    memory_limit: str | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Convert an HF InternVL folder to a Megatron-Core checkpoint that any tensor and pipeline layout loads.

    Rows go over a stretch at a time and types stay as they are. Config, tokenizer and every other file travel in
    `hf/`, with a record of how the weights were cut into files; `manifest.json` holds the SHA-256 of every HF tensor.
    `folder` appears when it is complete, or not at all; a process that was killed is gone on with.

    Args:
        source: HF folder with `config.json` and safetensors, in the original or the native layout.
        folder: checkpoint folder to create.
        overwrite: replace a checkpoint that is there.
        refuse_non_finite: refuse weights that are NaN or infinite; otherwise they are counted in a warning.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as it is.
        memory_limit: bytes above the interpreter, at most: `2GiB`.
        max_shard_size: bytes of a data file: `5GB`; by default there is one.

    Raises:
        ConfigError: another architecture, or a `config.json` that cannot be used.
        CheckpointError: weights missing, left over, damaged, a pickle, or of another shape; file or tensor is named.
        InUseError: another process writes to `folder`.
    """
    options = Options(overwrite, refuse_non_finite, dtype, memory_limit=memory_limit, max_shard_size=max_shard_size)
    opened = open_folder(source)
    check_side_files(source, opened.model.llm.vocab_size)
    stated = trained_config(source)
    config = None if stated == read_config(source) else stated
    write_megatron(opened, folder, options, "HF to Megatron", config)


def open_folder(source: Path) -> OpenSource:
    """Open an HF folder that a user has named.

    Raises:
        ConfigError: an architecture that is not supported.
        CheckpointError: no such folder, a Megatron checkpoint, or weights that are missing, of other names or shapes
            than the architecture's, or damaged.
    """
    if not source.is_dir():
        raise CheckpointError(f"{printable(source)}: no such folder{instead_of_missing(source)}")
    place = look_for_checkpoint(source, "the folder to convert,")
    if place is not None and not place.is_hf:
        raise CheckpointError(
            f"{printable(source)}: a Megatron checkpoint already; tools/convert_checkpoint.py mcore-to-hf "
            f"{printable(source)} OUT gives its HF form"
        )
    if os.path.lexists(source / HF_LAYOUT):
        raise CheckpointError(f"{printable(source / HF_LAYOUT)}: the name is taken by the converter; rename this file")
    opened = open_hf(source)
    check_copies(opened)
    if has_v2pe_scaling(read_config(source)) and opened.model.v2pe.rope_pos_id_version == "default":
        _log.warning(
            "%s: llm_config.rope_scaling.type is 'v2pe' but no rope_pos_id_version is stated; taken as plain rotary "
            "embedding with ordinary positions",
            printable(source / "config.json"),
        )
    return opened
