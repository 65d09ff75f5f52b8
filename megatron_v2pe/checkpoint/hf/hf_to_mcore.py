"""An HF InternVL2 folder becomes a Megatron-Core checkpoint folder, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.base.progress import byte_progress
from megatron_v2pe.checkpoint.checksums import Checksums, sums_of_files
from megatron_v2pe.checkpoint.description import Written, write_description
from megatron_v2pe.checkpoint.folder import DESCRIPTION, FORMAT_VERSION, HF_FOLDER, HF_LAYOUT, new_folder
from megatron_v2pe.checkpoint.hf.checks_beside import ChecksBeside
from megatron_v2pe.checkpoint.hf.finite import NumbersOnly
from megatron_v2pe.checkpoint.hf.folder import HFWeights, copy_other_files
from megatron_v2pe.checkpoint.hf.hub_digests import check_digest, known_digests
from megatron_v2pe.checkpoint.hf.side_files import check_side_files
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.checkpoint.resolve import instead_of_missing, look_for_checkpoint
from megatron_v2pe.checkpoint.torch_dist import TorchDistWriter
from megatron_v2pe.checkpoint.trained import has_v2pe_scaling
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config
from megatron_v2pe.version import __version__

_log = get_logger(__name__)


def hf_to_mcore(source: Path, folder: Path, overwrite: bool = False, *, refuse_non_finite: bool = True) -> None:
    """Convert an HF InternVL2 folder to a Megatron-Core checkpoint that any tensor and pipeline layout loads.

    Tensors go over one at a time and types stay as they are. Config, tokenizer and every other file travel in `hf/`,
    with a record of how the weights were cut into files. `folder` appears when it is complete, or not at all.

    Args:
        source: HF folder with `config.json` and safetensors.
        folder: checkpoint folder to create.
        overwrite: replace a checkpoint that is there.
        refuse_non_finite: refuse weights that are NaN or infinite; otherwise they are counted in a warning.

    Raises:
        ConfigError: another architecture, or a `config.json` that cannot be used.
        CheckpointError: weights missing, left over, damaged, a pickle, or of another shape; file or tensor is named.
    """
    model, table, weights, dtypes = check_folder(source)
    check_side_files(source, model.llm.vocab_size)
    with new_folder(folder, overwrite, DESCRIPTION) as temporary:
        written = _write_tensors(table, weights, temporary, NumbersOnly(printable(source), refuse_non_finite))
        (temporary / HF_FOLDER).mkdir()
        copy_other_files(source, temporary / HF_FOLDER)
        weights.layout.save(temporary / HF_FOLDER / HF_LAYOUT)
        description = _description(dtypes.most_common(1)[0][0])
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        Checksums({**written.file_sums(), **sums_of_files(temporary, but=written.sizes)}).write(temporary)


def check_folder(source: Path) -> tuple[InternVLConfig, MappingTable, HFWeights, Counter[torch.dtype]]:
    """Look at everything of an HF folder but the values of its weights.

    Returns:
        Its model, where each tensor goes, the weights as they lie there, and their bytes per type.

    Raises:
        ConfigError: an architecture that is not supported.
        CheckpointError: weights are missing, of other names or shapes than the architecture's, or damaged.
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
    model = _read_model(source)
    weights = HFWeights(source)
    table = mapping_table(model, layout_of(source), weights.layout.places())
    return model, table, weights, _check(table, weights)


def _read_model(source: Path) -> InternVLConfig:
    """Read `config.json` and say where its V2PE fields leave something open."""
    config, path = read_config(source), printable(source / "config.json")
    model = InternVLConfig.from_hf(config, path)
    if has_v2pe_scaling(config) and model.v2pe.rope_pos_id_version == "default":
        _log.warning(
            "%s: llm_config.rope_scaling.type is 'v2pe' but no rope_pos_id_version is stated; taken as plain rotary "
            "embedding with ordinary positions",
            path,
        )
    return model


def _check(table: MappingTable, weights: HFWeights) -> Counter[torch.dtype]:
    """Check names, shapes and types of all tensors before anything is written; return bytes per type."""
    source, places = printable(weights.folder), weights.layout.places()
    table.check_names(places, source)
    bytes_of: Counter[torch.dtype] = Counter()
    of_key: dict[str, tuple[str, torch.dtype]] = {}
    for mapping in table.tensors:
        place = places[mapping.name]
        table.check_shape(mapping, place.shape, source)
        if not place.dtype.is_floating_point:
            raise CheckpointError(f"{source}: {place.name} is {place.dtype}, expected a floating-point type")
        first, dtype = of_key.setdefault(mapping.key, (place.name, place.dtype))
        if dtype != place.dtype:
            raise CheckpointError(
                f"{source}: {first} is {dtype} and {place.name} is {place.dtype}; they become one tensor"
            )
        bytes_of[place.dtype] += place.nbytes
    return bytes_of


def _write_tensors(table: MappingTable, weights: HFWeights, folder: Path, numbers: NumbersOnly) -> Written:
    total = sum(place.nbytes for place in weights.layout.places().values())
    with (
        TorchDistWriter(folder) as writer,
        ChecksBeside() as checks,  # they take a third of the time that writing takes, or more
        byte_progress(total, "HF to Megatron") as progress,
    ):
        for mapping in table.tensors:
            checks.add(numbers.look_in, weights, mapping.name)
        for path, digest in known_digests(weights.folder):
            checks.add(check_digest, path, digest)
        for mapping in table.tensors:
            tensor = weights.tensor(mapping.name)
            for first_row, rows in mapping.to_mcore(tensor):
                writer.add_rows(mapping.key, mapping.key_shape, first_row, rows)
            progress.update(tensor.nbytes)
            checks.look()
            if numbers.refused:  # what is left is looked at, and not written
                break
    numbers.conclude()
    write_description(folder, writer.written, {})
    return writer.written


def _description(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": "converted",
        "iteration": 0,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"megatron_v2pe": __version__, "torch": torch.__version__},
    }
