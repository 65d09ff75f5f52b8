"""A Megatron-Core checkpoint folder, converted or trained in any layout, becomes an HF folder again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import byte_progress
from megatron_v2pe.checkpoint.checksums import Checksums, FileSum, sums_of_files
from megatron_v2pe.checkpoint.folder import DESCRIPTION, HF_FOLDER, HF_LAYOUT, new_folder
from megatron_v2pe.checkpoint.hf import hf_config
from megatron_v2pe.checkpoint.hf.checks_beside import ChecksBeside
from megatron_v2pe.checkpoint.hf.finite import NumbersOnly
from megatron_v2pe.checkpoint.hf.folder import INDEX, FileLayout, copy_other_files
from megatron_v2pe.checkpoint.hf.safetensors_io import TensorPlace, write_file
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.checkpoint.resolve import find_checkpoint
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader
from megatron_v2pe.checkpoint.trained import loadable, trained_config, with_settings
from megatron_v2pe.checkpoint.vet import read_description, vet_checkpoint
from megatron_v2pe.errors import CheckpointError, ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config import InternVLConfig, read_config
from megatron_v2pe.v2pe.settings import V2PESettings

_log = get_logger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CONFIG = "config.json"


@dataclass(frozen=True)
class Export:
    """What the user asks of an exported checkpoint; None keeps what the checkpoint says."""

    rope_pos_id_version: str | None = None
    rope_pos_id_stride: str | int | float | Fraction | None = None
    dtype: str | None = None
    """`bf16`, `fp32` or `fp16`; None: every tensor as the original HF checkpoint had it."""


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

    Raises:
        ConfigError: V2PE settings that do not go together, or an unknown `dtype`.
        CheckpointError: the checkpoint is incomplete, damaged, refused or of another model; nothing is written.
    """
    export = Export(rope_pos_id_version, rope_pos_id_stride, dtype)
    if export.dtype is not None and export.dtype not in DTYPES:
        raise ConfigError(f"dtype {export.dtype!r} is none of {', '.join(DTYPES)}")
    place = find_checkpoint(folder, "checkpoint")
    if place.is_hf:
        raise CheckpointError(f"{printable(folder)}: an HF checkpoint already; a Megatron one is converted to it")
    folder = place.folder
    reader = vet_checkpoint(folder, verify)
    hf = folder / HF_FOLDER
    original = read_config(hf)
    model = InternVLConfig.from_hf(original, printable(hf / _CONFIG))
    table = mapping_table(model)
    layout = FileLayout.load(hf / HF_LAYOUT)
    check_side_files(hf, model.llm.vocab_size)
    _check_index(hf / INDEX, layout)
    _check(table, layout, reader, folder)
    trained = read_description(folder / DESCRIPTION).get("kind") != "converted"
    config = _new_config(folder, original, export)
    if export.dtype is not None:
        wanted = DTYPES[export.dtype]
        layout = FileLayout(tuple((name, header.with_dtype(wanted)) for name, header in layout.shards))
    new = trained or export != Export()  # else it is what was converted, to the byte, and nothing is added
    with new_folder(target, overwrite, _CONFIG) as temporary:
        numbers = NumbersOnly(printable(folder), refuse_non_finite)
        written = _write_tensors(table, layout, reader, temporary, numbers, summed=new)
        copy_other_files(hf, temporary, but=Path(HF_LAYOUT))
        if config is not None:
            (temporary / _CONFIG).write_text(hf_config.to_text(config), encoding="utf-8")
        if export.dtype is not None:
            _correct_index(temporary / INDEX, layout)
        if new:
            Checksums({**written, **sums_of_files(temporary, but=written)}).write(temporary)


def _check_index(path: Path, layout: FileLayout) -> None:
    """Check that the index of an HF folder, if it has one, says of every tensor in which file it is."""
    if not path.is_file():
        return
    expected = {place.name: file for file, header in layout.shards for place in header.tensors}
    if read_description(path).get("weight_map") != expected:
        raise CheckpointError(f"{printable(path)}: damaged: weight_map does not fit {HF_LAYOUT} beside it")


def _check(table: MappingTable, layout: FileLayout, reader: TorchDistReader, folder: Path) -> None:
    """Check both sides against the table before anything is written."""
    places = layout.places()
    table.check_names(places, str(folder / HF_FOLDER / HF_LAYOUT))
    for mapping in table.tensors:
        table.check_shape(mapping, places[mapping.name].shape, str(folder / HF_FOLDER / HF_LAYOUT))
    weights = {key: entry.size for key, entry in reader.tensors.items() if not key.startswith("optimizer.")}
    table.check_keys(weights, str(folder))


def _write_tensors(
    table: MappingTable, layout: FileLayout, reader: TorchDistReader, target: Path, numbers: NumbersOnly, summed: bool
) -> dict[str, FileSum]:
    """Write the shards; return their sizes and checksums by name.

    Args:
        table: of the model.
        layout: names and headers of the shards.
        reader: of the checkpoint.
        target: folder to write to.
        numbers: looks at what is written.
        summed: whether sizes and checksums are wanted.
    """
    mappings = table.by_name()
    total = sum(place.nbytes for place in layout.places().values())
    sums: dict[str, FileSum] = {}
    with byte_progress(total, "Megatron to HF") as progress, ChecksBeside() as checks:

        def tensor(place: TensorPlace) -> Tensor:
            mapping = mappings[place.name]
            values = mapping.to_hf(partial(reader.read_rows, mapping.key)).to(place.dtype)
            progress.update(place.nbytes)
            checks.add(numbers.look, values, place.name)
            checks.look()
            return values

        for name, header in layout.shards:
            digest = xxhash.xxh3_128() if summed else None
            write_file(target / name, header, tensor, digest)
            if digest is not None:
                sums[name] = FileSum(header.file_size, digest.hexdigest())
    numbers.conclude()
    return sums


def _new_config(folder: Path, config: dict[str, Any], export: Export) -> dict[str, Any] | None:
    """Return the `config.json` to write, None where the original still holds to the byte."""
    result = _as_trained(folder, config, export)
    stated = V2PESettings.from_config(result)
    settings = stated.overridden(export.rope_pos_id_version, export.rope_pos_id_stride)
    if export.rope_pos_id_version is not None or export.rope_pos_id_stride is not None:
        settings.check_in_config()
        result = with_settings(result, settings)
    result = loadable(result)  # even where nothing else changes: a file that nobody can load is no use
    if export.dtype is not None:
        result = hf_config.with_dtype(result, str(DTYPES[export.dtype]).removeprefix("torch."))
    return None if result == config else result


def _as_trained(folder: Path, config: dict[str, Any], export: Export) -> dict[str, Any]:
    """Return the `config.json` with what a run was trained with.

    Raises:
        CheckpointError: its state is lost or damaged, and the user does not say with which positions either.
    """
    try:
        return trained_config(folder)
    except CheckpointError as error:
        if export.rope_pos_id_version is not None:
            _log.warning("%s; template and tiles are written as the run was given them in its config.json", error)
            return config
        raise CheckpointError(f"{error}, or state them (--rope-pos-id-version, --rope-pos-id-stride)") from error


def _correct_index(path: Path, layout: FileLayout) -> None:
    """Write the size of the weights in their new type."""
    if not path.is_file():
        return
    index = read_description(path)
    total = sum(place.nbytes for place in layout.places().values())
    metadata = Fields(index, printable(path), CheckpointError).get("metadata", dict, {})
    index["metadata"] = {**metadata, "total_size": total}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
