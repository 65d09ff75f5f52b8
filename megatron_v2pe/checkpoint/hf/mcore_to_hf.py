"""A Megatron-Core checkpoint folder, converted or trained in any layout, becomes an HF folder again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.open_source import OpenSource, open_megatron
from megatron_v2pe.checkpoint.hf.options import Options
from megatron_v2pe.checkpoint.hf.side_files import SideFiles, check_side_files
from megatron_v2pe.checkpoint.hf.to_hf import files_are_new, write_hf
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.trained import loadable, trained_config, with_settings
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import read_config
from megatron_v2pe.v2pe.settings import V2PESettings

_log = get_logger(__name__)


def mcore_to_hf(
    folder: Path,
    target: Path,
    *,
    rope_pos_id_version: str | None = None,
    rope_pos_id_stride: str | int | float | Fraction | None = None,
    overwrite: bool = False,
    dtype: str | None = None,
    verify: bool = True,
    refuse_non_finite: bool = True,
    layout: str | None = None,
    memory_limit: str | None = None,
    max_shard_size: str | None = None,
    manifest: bool | None = None,
    language_model: str | None = None,
    side_files: SideFiles | None = None,
    weights: str = "model",
) -> None:
    """Convert a Megatron-Core checkpoint, converted or trained in any layout, to an HF folder.

    Without options, what `hf_to_mcore` made goes back byte for byte, but for a `config.json` with the scaling `v2pe`:
    the published code saves it and refuses to load it, so it comes back in a form that loads. A training
    checkpoint also writes into `config.json` what it was trained with: V2PE settings, conversation template, how images
    are cut into tiles. Its optimizer state stays behind.

    Args:
        folder: a checkpoint folder, or that of a training run, whose newest checkpoint is taken.
        target: HF folder to create.
        rope_pos_id_version: write this version instead.
        rope_pos_id_stride: write this stride instead: `64`, `1/2`, `0.5`.
        overwrite: replace an HF folder that is there.
        dtype: `bf16`, `fp32` or `fp16`; by default every tensor as the original HF checkpoint had it.
        verify: compare what is read with the folder's checksums.
        refuse_non_finite: as in `hf_to_mcore`; a type that is too small for a value makes it infinite.
        layout: `original` or `native`; by default that of the original HF checkpoint.
        memory_limit: bytes above the interpreter, at most: `2GiB`.
        max_shard_size: bytes of a file of weights: `5GB`; by default they are cut as in the original.
        manifest: write `manifest.json`, the SHA-256 of every tensor; by default unless the folder is the original's.
        language_model: `model_type` of the language model in an original folder that is made of a native one, where it
            is not to be the one that the native folder states: `internlm2` for `llama`.
        side_files: writes tokenizer and processor of a folder in another layout than the one that was converted;
            `generate.native_files.side_files` is one. None: the files are copied as they are.
        weights: `ema` takes of a training checkpoint the moving average of what has learned, `model` the weights.

    Raises:
        ConfigError: V2PE settings that do not go together, or an unknown `dtype`.
        CheckpointError: the checkpoint is incomplete, damaged, refused or of another model; nothing is written.
        InUseError: another process writes to `target`.
    """
    options = Options(
        overwrite,
        refuse_non_finite,
        dtype,
        memory_limit,
        max_shard_size,
        layout,
        verify,
        rope_pos_id_version,
        rope_pos_id_stride,
        manifest,
        weights,
        language_model,
    )
    source = open_export(folder, options)
    config = new_config(source, options)
    asked = dtype is not None or rope_pos_id_version is not None or rope_pos_id_stride is not None
    new = source.trained or asked or files_are_new(source, options)
    # where it is not new it comes back to the byte, and nothing is added
    write_hf(source, target, options, "Megatron to HF", config, new, side_files)


def open_export(folder: Path, options: Options) -> OpenSource:
    """Open the Megatron checkpoint that a user has named; for errors see `mcore_to_hf`."""
    place = find_checkpoint(folder, "checkpoint")
    if place.is_hf:
        raise CheckpointError(
            f"{printable(folder)}: an HF checkpoint already; a Megatron one is converted to it. Another layout, type "
            f"or size of its files: tools/convert_checkpoint.py hf-to-hf {printable(folder)} OUT"
        )
    source = open_megatron(place.folder, options.verify, options.weights == "ema", options.budget.kept)
    check_side_files(source.hf, source.model.llm.vocab_size)
    return source


def new_config(source: OpenSource, options: Options) -> dict[str, Any] | None:
    """Return the `config.json` to write, in its original form, None where the one that is there holds to the byte.

    Raises:
        ConfigError: V2PE settings that do not go together.
        CheckpointError: see `trained.trained_config`, where the user does not say with which positions either.
    """
    config = read_config(source.hf)
    result = _as_trained(source.folder, config, options)
    stated = V2PESettings.from_config(result)
    settings = stated.overridden(options.rope_pos_id_version, options.rope_pos_id_stride)
    if options.rope_pos_id_version is not None or options.rope_pos_id_stride is not None:
        settings.check_in_config()
        result = with_settings(result, settings)
    result = loadable(result)  # even where nothing else changes: a file that nobody can load is no use
    return None if result == config else result


def _as_trained(folder: Path, config: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return the `config.json` with what a run was trained with.

    Raises:
        CheckpointError: its state is lost or damaged, and the user does not say with which positions either.
    """
    try:
        return trained_config(folder)
    except CheckpointError as error:
        if options.rope_pos_id_version is not None:
            _log.warning("%s; template and tiles are written as the run was given them in its config.json", error)
            return config
        raise CheckpointError(f"{error}, or state them (--rope-pos-id-version, --rope-pos-id-stride)") from error
