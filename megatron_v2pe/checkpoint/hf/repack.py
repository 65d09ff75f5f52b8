"""A checkpoint written anew in its own form: an HF folder in another layout, type or cut; a Megatron folder too."""

from __future__ import annotations

from pathlib import Path

from megatron_v2pe.checkpoint.hf.hf_to_mcore import open_folder
from megatron_v2pe.checkpoint.hf.mcore_to_hf import new_config, open_export
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.side_files import SideFiles, check_side_files
from megatron_v2pe.checkpoint.hf.to_hf import write_hf
from megatron_v2pe.checkpoint.hf.to_mcore import write_megatron
from megatron_v2pe.checkpoint.trained import loadable, trained_config
from megatron_v2pe.models.config import read_config


def hf_to_hf(
    source: Path,
    target: Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    overwrite: bool = False,
    refuse_non_finite: bool = True,
    memory_limit: str | None = None,
    language_model: str | None = None,
    side_files: SideFiles | None = None,
) -> None:
    """Write an HF folder anew: in the other layout, in another type, in files of another size.

    Rows go from tensor to tensor; there is no checkpoint in between.

    Args:
        source: HF folder.
        target: HF folder to create.
        layout: `original` or `native`; by default the source's.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as it is.
        max_shard_size: bytes of a file of weights; by default as the source is cut, `5GB` in another layout.
        overwrite: replace an HF folder that is there.
        refuse_non_finite: as in `hf_to_mcore`.
        memory_limit: bytes above the interpreter, at most: `2GiB`.
        language_model: as in `Options`.
        side_files: as in `to_hf.write_hf`; `generate.native_files.side_files` is one.

    Raises:
        ConfigError: another architecture, a layout that has no form for it, or a `config.json` that cannot be used.
        CheckpointError: see `hf_to_mcore`.
        InUseError: another process writes to `target`.
    """
    options = Options(
        overwrite, refuse_non_finite, dtype, memory_limit, max_shard_size, layout, language_model=language_model
    )
    opened = open_folder(source)
    check_side_files(source, opened.model.llm.vocab_size)
    stated = read_config(source)
    config = loadable(trained_config(source))
    write_hf(opened, target, options, "HF to HF", None if config == stated else config, True, side_files)


def mcore_to_mcore(
    folder: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    overwrite: bool = False,
    refuse_non_finite: bool = True,
    memory_limit: str | None = None,
    verify: bool = True,
    side_files: SideFiles | None = None,
) -> None:
    """Write a Megatron checkpoint anew: weights alone, in another type, in data files of another size.

    The folder loads in any layout as it is; what changes is that the optimizer's state and the padding of a
    vocabulary stay behind, and that every tensor is whole in its file whatever layout wrote it.

    Args:
        folder: a checkpoint folder, or that of a training run, whose newest checkpoint is taken.
        target: checkpoint folder to create.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as it is.
        max_shard_size: bytes of a data file; by default there is one.
        overwrite: replace a checkpoint that is there.
        refuse_non_finite: as in `hf_to_mcore`.
        memory_limit: bytes above the interpreter, at most: `2GiB`.
        verify: compare what is read with the folder's checksums.
        side_files: as in `to_hf.write_hf`: a run of native layout states its tiles and template there too.

    Raises:
        ConfigError: another architecture.
        CheckpointError: the checkpoint is incomplete, damaged, refused or of another model.
        InUseError: another process writes to `target`.
    """
    options = Options(overwrite, refuse_non_finite, dtype, memory_limit, max_shard_size, verify=verify)
    source = open_export(folder, options)
    write_megatron(source, target, options, "Megatron to Megatron", new_config(source, options), side_files)
