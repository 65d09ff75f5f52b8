"""The adapter in a checkpoint of a run that trained one, and the base that it belongs to.

Such a checkpoint holds what learned (`checkpoint/adapters.py`): factors, and parts that were trained in full. All else
is the base's, whose fingerprint it states.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.adapters import AdapterPointer, fingerprint_of, fingerprint_of_manifest
from megatron_v2pe.checkpoint.folder import AVERAGED, DESCRIPTION, HF_FOLDER, TRAINING_STATE
from megatron_v2pe.checkpoint.hf.finite import Examination
from megatron_v2pe.checkpoint.hf.manifest import TensorManifest, TensorSum
from megatron_v2pe.checkpoint.hf.row_sources import HFTensors, RowSource
from megatron_v2pe.checkpoint.hf.table import TABLES, MappingTable, mapping_table
from megatron_v2pe.checkpoint.low_rank.adapter import Adapter, StatedBase
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange
from megatron_v2pe.checkpoint.low_rank.piece_rows import MARK, piece_name, piece_table
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows, tokens_beside
from megatron_v2pe.checkpoint.resolve import FoundCheckpoint, look_for_checkpoint
from megatron_v2pe.checkpoint.torch_dist import TorchDistReader
from megatron_v2pe.checkpoint.vet import read_description, vet_checkpoint
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.grown_tokenizer import read_new_tokens
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.models.config import InternVLConfig, layout_of, read_config

_OPTIMIZER = "optimizer."
_TRAINED = ("v2pe", "data")
"""Sections of a run's settings that say how it was trained, as `checkpoint.trained` reads them."""
_BLOCK = 1 << 20


def read_run(folder: Path, verify: bool = True, averaged: bool = False) -> Adapter:
    """Read the adapter of a checkpoint.

    Args:
        folder: of one checkpoint, with `adapter.json`.
        verify: compare checksums.
        averaged: take the moving average (EMA) of what has learned.

    Raises:
        CheckpointError: it is incomplete or damaged, holds no average where that is asked for, or holds factors of
            other shapes than its model has.
    """
    pointer, source = AdapterPointer.read(folder), printable(folder)
    assert pointer is not None, folder
    reader, hf = vet_checkpoint(folder, verify), folder / HF_FOLDER
    model = InternVLConfig.from_hf(read_config(hf), printable(hf / "config.json"))
    keys, before = [key for key in reader.tensors if not key.startswith(_OPTIMIZER)], AVERAGED if averaged else ""
    if averaged and not any(key.startswith(AVERAGED) for key in reader.tensors):
        raise CheckpointError(
            f"{source}: holds no average of weights (EMA), which optimizer.ema_decay has a run keep: take the weights "
            "themselves (model, not ema)"
        )
    ids = _row_ids(pointer, hf, model)
    whole = sorted(key for key in keys if MARK not in key and not (ids and key in TABLES))
    table = piece_table(pointer.pieces, mapping_table(model, layout_of(hf)), whole, source)
    rows, changes = table.by_name(), dict[str, LowRankChange]()
    for linear, pieces in pointer.pieces.items():
        settings = pointer.parts[linear.split(".")[0]]
        for piece in pieces:
            name, begin = piece_name(linear, piece.name), f"{linear}{MARK}{piece.name}"
            outputs, inputs = rows[name].shape
            down = _factor(reader, f"{before}{begin}.lora_A", (settings.rank, inputs), source)
            up = _factor(reader, f"{before}{begin}.lora_B", (outputs, settings.rank), source)
            changes[name] = LowRankChange(down, up, settings.alpha, settings.use_rslora)
    replaced = {key: reader.read_rows(f"{before}{key}", 0, rows[key].shape[0]) for key in whole}
    tables: dict[str, Tensor] = {}
    for key in TABLES if ids else ():
        if key in keys:
            own = f"{before}{key}" if f"{before}{key}" in reader.tensors else key  # rows that do not learn are averages
            tables[key] = _factor(reader, own, (len(ids), model.llm.hidden_size), source)
    token_rows = TokenRows(source, ids, tables, tokens_beside(hf), hf) if tables else None
    dropout = max((one.dropout for one in pointer.parts.values()), default=0.0)
    base = StatedBase(pointer.base, pointer.fingerprint)
    return Adapter(source, table, changes, replaced, dropout, base, _trained(folder), token_rows)


def _row_ids(pointer: AdapterPointer, hf: Path, model: InternVLConfig) -> tuple[int, ...]:
    """Return which rows of the vocabulary's tables a checkpoint holds in place of its base's; none: whole tables."""
    if pointer.rows is not None:
        return tuple(pointer.rows)
    return tuple(range(model.llm.vocab_size)) if read_new_tokens(hf, CheckpointError) else ()


def base_of(pointer: AdapterPointer, source: Path) -> FoundCheckpoint:
    """Return the base of a checkpoint: the folder whose weights its run has loaded, or what the run was given.

    Raises:
        CheckpointError: neither is there.
    """
    folder = Path(pointer.base_folder)
    if (folder / DESCRIPTION).is_file():
        return FoundCheckpoint(folder, is_hf=False)
    found = look_for_checkpoint(Path(pointer.base), "the base of an adapter,")
    if found is not None:
        return found
    raise CheckpointError(
        f"{printable(source)}: holds an adapter of {printable(pointer.base)}, and neither that nor "
        f"{printable(folder)} is there: put the base back, or name it (tools/merge_adapter.py BASE ADAPTER OUT)"
    )


def check_base(adapter: Adapter, folder: Path, table: MappingTable, other: MappingTable, rows: RowSource) -> bool:
    """Check that a checkpoint is the base of an adapter.

    Args:
        adapter: states the fingerprint of its base, or none.
        folder: of the checkpoint, HF or Megatron.
        table: of its layout.
        other: of the other layout: the tensors of a base that was exported to it are the same.
        rows: its weights, read where no manifest lies beside them.

    Returns:
        Whether the adapter states a fingerprint.

    Raises:
        CheckpointError: it is another model, or was changed since; both fingerprints are named.
    """
    if adapter.base.fingerprint is None:
        return False
    found: list[str] = []
    for fingerprint in _fingerprints(folder, table, other, rows):
        if fingerprint == adapter.base.fingerprint:
            return True
        found.append(fingerprint)
    raise CheckpointError(
        f"{adapter.source}: an adapter of the base {printable(adapter.base.path)} with the fingerprint "
        f"{adapter.base.fingerprint}; {printable(folder)} has the fingerprint {found[0]}: it is another model, or was "
        "changed since. Name the base that the adapter was trained on"
    )


def _fingerprints(folder: Path, table: MappingTable, other: MappingTable, rows: RowSource) -> Iterator[str]:
    if (folder / DESCRIPTION).is_file():
        yield fingerprint_of(folder)
        if TensorManifest.read(folder) is None:
            return
    else:
        yield fingerprint_of_manifest(TensorManifest.read(folder) or _manifest(table, rows))
    yield fingerprint_of_manifest(_manifest(other, rows))


def _manifest(table: MappingTable, rows: RowSource) -> TensorManifest:
    """Return the SHA-256 of every tensor of a table, read a block at a time."""
    tensors, sums = HFTensors(rows, table), dict[str, TensorSum]()
    for mapping in table.tensors:
        examination = Examination(mapping.name, tensors.dtype(mapping.name), mapping.shape)
        width = tensors.row_bytes(mapping.name)
        buffer = memoryview(bytearray(max(width, _BLOCK)))
        for first, count in tensors.stretches(mapping.name, _BLOCK):
            block = buffer[: count * width]
            tensors.read(mapping.name, first, block)
            examination.update(block)
        sums[mapping.name] = TensorSum.of(examination.result())
    return TensorManifest(sums)


def _factor(reader: TorchDistReader, key: str, shape: tuple[int, int], source: str) -> Tensor:
    """Return a factor of an adapter.

    Raises:
        CheckpointError: it is missing, of another shape, or no numbers.
    """
    stored = reader.tensors.get(key)
    if stored is None:
        raise CheckpointError(f"{source}: {key} is missing, which adapter.json names: copy the checkpoint again")
    if tuple(stored.size) != shape:
        raise CheckpointError(
            f"{source}: {key} has shape {list(stored.size)}, the model and adapter.json {list(shape)}"
        )
    values = reader.read_rows(key, 0, shape[0])
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise CheckpointError(f"{source}: {key}: {count} of {values.numel()} values are NaN or infinite")
    return values


def _trained(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that an export of its adapter is to state."""
    path = folder / TRAINING_STATE
    if not path.is_file():
        return {}
    state = Fields(read_description(path), printable(path), CheckpointError)
    settings = state.get("settings", dict[str, Any], {})
    return {name: settings[name] for name in _TRAINED if isinstance(settings.get(name), dict)}
