"""Adapters as PEFT's own folders: `adapter_config.json` with `adapter_model.safetensors`, read and written.

What PEFT has no place for stands in `v2pe_adapter.json` beside them, which it passes over: the fingerprint of the base,
and with which positions, template and tiles the adapter was trained. Rows of tokens are in `peft_rows.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.folder import new_folder
from megatron_v2pe.checkpoint.hf.mappings import Interleaved, TensorMapping
from megatron_v2pe.checkpoint.hf.safetensors_io import SafetensorsFile, header_of, write_file
from megatron_v2pe.checkpoint.hf.table import TABLES
from megatron_v2pe.checkpoint.low_rank.adapter import WEIGHT, Adapter, StatedBase
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange
from megatron_v2pe.checkpoint.low_rank.module_names import module_table, modules_of
from megatron_v2pe.checkpoint.low_rank.peft_config import CONFIG_FILE, PeftConfig, patterns_of, shortest_names
from megatron_v2pe.checkpoint.low_rank.peft_halves import BEFORE, Halves, halves_of
from megatron_v2pe.checkpoint.low_rank.peft_rows import copy_tokenizer, rows_found, rows_in_peft_form
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import read_json_object
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.native_config import NATIVE

WEIGHTS_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"
OWN_FILE = "v2pe_adapter.json"
"""What stands beside PEFT's files."""
_FORMAT = 1
_log = get_logger(__name__)


def is_peft_folder(folder: Path) -> bool:
    """Tell whether a folder holds an adapter in PEFT's form."""
    return (folder / CONFIG_FILE).is_file()


def read_peft(folder: Path, model: InternVLConfig) -> Adapter:
    """Read a PEFT folder.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`, of any floating-point type.
        model: the base.

    Raises:
        CheckpointError: files are missing or damaged, it is no LoRA, or it does not fit the model; names the field or
            the tensor, and the two shapes.
    """
    config, source = PeftConfig.read(folder), printable(folder)
    path = folder / WEIGHTS_FILE
    if not os.path.lexists(path):
        if os.path.lexists(folder / PICKLE_FILE):
            raise CheckpointError(
                f"{printable(folder / PICKLE_FILE)}: refusing pickle: loading it could run any code; save the adapter "
                f"with PEFT's save_pretrained (safe_serialization=True), which writes {WEIGHTS_FILE}"
            )
        raise CheckpointError(f"{printable(path)}: missing; PEFT writes it beside {CONFIG_FILE}")
    file = SafetensorsFile(path)
    tensors = {place.name: file.tensor(place.name) for place in file.header.tensors}
    halves = halves_of(tensors, printable(path))
    return fitted(halves, config, model, source, own_file(folder), folder)


def fitted(
    halves: Halves,
    config: PeftConfig,
    model: InternVLConfig,
    source: str,
    own: Fields | None = None,
    folder: Path | None = None,
) -> Adapter:
    """Return an adapter whose shapes are those of the model.

    Args:
        halves: its tensors.
        config: ranks and scalings.
        model: the base.
        source: for errors.
        own: content of `v2pe_adapter.json`.
        folder: where the tokenizer lies, of an adapter that brings tokens.

    Raises:
        CheckpointError: modules that the model has not, ranks or widths that disagree; both numbers are named.
    """
    modules = {*halves.down, *halves.rows, *(name.rpartition(".")[0] for name in halves.whole)}
    named = modules_of(model, modules, source)
    rows = named.table.by_name()
    changes: dict[str, LowRankChange] = {}
    for module, down in halves.down.items():
        up, name = halves.up[module], named.before + module + WEIGHT
        mapping = rows.get(name)
        if mapping is None or len(mapping.shape) != 2 or mapping.copy:
            raise CheckpointError(f"{source}: {printable(module)[:200]} is no linear of the model")
        where = f"{source}: {printable(module)[:200]}"
        _check_shapes(where, mapping, down, up, config.rank_of(module), config.file)
        changes[name] = LowRankChange(down, up, config.alpha_of(module), config.rank_stabilised)
    whole: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    deltas = {named.before + module + WEIGHT: values for module, values in halves.rows.items()}
    for short, tensor in halves.whole.items():
        mapping = rows.get(named.before + short)
        if mapping is None:
            raise CheckpointError(f"{source}: {printable(short)[:200]} is no tensor of the model")
        if _is_grown_table(tensor, mapping) or mapping.name in deltas:
            if mapping.copy:
                continue  # a tied head, whose rows are the embedding's
            tables[mapping.name] = tensor
            continue
        if tuple(tensor.shape) != mapping.shape:
            raise CheckpointError(
                f"{source}: {printable(short)[:200]} has shape {list(tensor.shape)}, the model's {list(mapping.shape)}"
            )
        if mapping.name not in changes:  # else the base's own weight, saved beside the adapter of an embedding
            whole[mapping.name] = tensor
    token_rows = rows_found(deltas, tables, config, rows, source, folder)
    _warn_of_missing_layers(changes, source)
    base = StatedBase(config.base)
    trained: Mapping[str, Any] = {}
    if own is not None:
        base = StatedBase(own.text("base", config.base), own.text("base_fingerprint", None))
        trained = own.get("trained", dict[str, Any], {})
    return Adapter(source, named.table, changes, whole, config.dropout, base, trained, token_rows)


def _is_grown_table(tensor: Tensor, mapping: TensorMapping) -> bool:
    """Tell whether a tensor is an embedding or a head with more rows than the model's."""
    wide = tensor.dim() == 2 and tuple(tensor.shape[1:]) == mapping.shape[1:]
    return mapping.key in TABLES and wide and tensor.shape[0] > mapping.shape[0]


def write_peft(
    adapter: Adapter,
    model: InternVLConfig,
    target: Path,
    layout: str,
    base: str | None = None,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an adapter as a PEFT folder; it appears when it is complete, or not at all.

    Args:
        adapter: in any layout.
        model: its base.
        target: folder to create.
        layout: `original` or `native`: whose modules it is for.
        base: folder or name of the base, which PEFT's own loading may use; None: as the adapter states it.
        overwrite: replace a PEFT folder that is there.
        dtype: floating-point type of all tensors; None: each as the adapter has it.

    Raises:
        CheckpointError: a part that was trained in full has no form there, a value is too large for `dtype`, or
            `target` exists.
    """
    table = module_table(model, layout)
    stated = adapter.named(table)
    changes = {name.removesuffix(WEIGHT): change for name, change in stated.changes.items()}
    tables, token_rows, whole_tables = rows_in_peft_form(stated.rows, table)
    whole = [*whole_modules(stated), *whole_tables]
    config = _config(changes, whole, _all_modules(row.name for row in table.tensors), stated, layout, base)
    config = replace(config, token_rows=token_rows)
    tensors: dict[str, Tensor] = {}
    for module, change in changes.items():
        tensors[f"{BEFORE}{module}.lora_A.weight"] = change.down
        tensors[f"{BEFORE}{module}.lora_B.weight"] = change.up
    tensors |= {BEFORE + name: tensor for name, tensor in {**stated.whole, **tables}.items()}
    if dtype is not None:
        tensors = {name: _rounded(name, tensor, dtype, adapter.source) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # as the safetensors library has it
    header = header_of((name, tensors[name].shape, tensors[name].dtype) for name in order)
    own = {"format_version": _FORMAT, "layout": layout, "base": adapter.base.path, "trained": dict(adapter.trained)}
    if adapter.base.fingerprint is not None:
        own["base_fingerprint"] = adapter.base.fingerprint
    with new_folder(target, overwrite, CONFIG_FILE) as folder:
        write_file(folder / WEIGHTS_FILE, header, lambda place: tensors[place.name])
        (folder / OWN_FILE).write_text(json.dumps(own, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if adapter.rows is not None and adapter.rows.tokenizer is not None:
            copy_tokenizer(adapter.rows.tokenizer, folder)
        config.write(folder)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype, source: str) -> Tensor:
    """Return a tensor in another type, in which it must still be numbers."""
    rounded = tensor.to(dtype)
    if not torch.isfinite(rounded).all():
        raise CheckpointError(
            f"{source}: {name}: {int((~torch.isfinite(rounded)).sum())} of {tensor.numel()} values are too large for "
            f"{str(dtype).removeprefix('torch.')}: take a wider type (--dtype bf16)"
        )
    return rounded


def whole_modules(adapter: Adapter) -> list[str]:
    """Return the modules whose tensors an adapter holds whole: as few as there can be.

    Raises:
        CheckpointError: a tensor stands whole and is no module of its own, so that PEFT cannot name it.
    """
    names = {row.name for row in adapter.table.tensors if not row.copy}
    found: list[str] = []
    left = set(adapter.whole)
    while left:
        name = min(left)
        module, inside = "", set[str]()
        parts = name.split(".")
        for length in range(1, len(parts)):
            begin = ".".join(parts[:length])
            inside = {other for other in names if other.startswith(f"{begin}.")}
            if inside <= adapter.whole.keys() and not inside & adapter.changes.keys():
                module = begin
                break
        if not module:
            raise CheckpointError(
                f"{adapter.source}: {name} was trained in full, but not all of its module {name.rpartition('.')[0]}; "
                "PEFT stores whole modules: merge the adapter into its base"
            )
        found.append(module)
        left -= inside
    return found


def _all_modules(tensors: Iterable[str]) -> set[str]:
    """Return every module of a model, those that hold others too: PEFT goes through all of them by their endings."""
    found: set[str] = set()
    for name in tensors:
        parts = name.split(".")[:-1]
        found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


def _config(
    changes: Mapping[str, LowRankChange],
    whole: list[str],
    modules: Iterable[str],
    adapter: Adapter,
    layout: str,
    base: str | None,
) -> PeftConfig:
    """Return the settings that give each module its rank and its alpha."""
    ranks = {module: change.rank for module, change in changes.items()}
    alphas = {module: change.alpha for module, change in changes.items()}
    stabilised = {change.rank_stabilised for change in changes.values()}
    assert len(stabilised) < 2, "one adapter has one form of scaling"
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else float(rank)
    outside = [name for name in modules if not any(name.startswith(f"{module}.") for module in whole)]
    return PeftConfig(
        rank,
        alpha,
        tuple(shortest_names(changes, {*outside, *changes})),
        bool(stabilised) and stabilised.pop(),
        adapter.dropout,
        tuple(whole),
        patterns_of(ranks, rank),
        patterns_of(alphas, alpha),
        base=base if base is not None else adapter.base.path,
        class_name="InternVLForConditionalGeneration" if layout == NATIVE else None,
    )


def _check_shapes(where: str, mapping: TensorMapping, down: Tensor, up: Tensor, rank: int, file: str) -> None:
    """Refuse factors that do not make up a change of a linear."""
    rows, columns = mapping.shape
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{where}: lora_A has shape {list(down.shape)} and lora_B {list(up.shape)}; their product is none"
        )
    if (up.shape[0], down.shape[1]) != mapping.shape:
        raise CheckpointError(
            f"{where}: lora_B @ lora_A has shape [{up.shape[0]}, {down.shape[1]}], the model's weight [{rows}, "
            f"{columns}]: it is an adapter for another base"
        )
    if down.shape[0] != rank:
        raise CheckpointError(f"{where}: its factors have rank {down.shape[0]}, {file} says {rank}")
    parts = sum(map(len, mapping.rows.parts)) if isinstance(mapping.rows, Interleaved) else 1
    most = min(rows, columns) * max(parts, 1)  # of several linears put together, the rank is the sum of theirs
    if rank > most:
        raise CheckpointError(f"{where}: rank {rank} is larger than the linear, which is {rows} x {columns}")


def _warn_of_missing_layers(changes: Iterable[str], source: str) -> None:
    """Say where some layers have an adapter and others have none: a file that lost tensors looks like that."""
    layers: dict[str, set[str]] = {}
    for name in changes:
        if match := re.fullmatch(r"(.*\.layers?)\.(\d+)\.(.*)", name):
            layers.setdefault(f"{match[1]}.*.{match[3]}", set()).add(match[2])
    most = {}
    for kind, numbers in layers.items():
        begin = kind.partition(".*.")[0]
        most[begin] = most.get(begin, set()) | numbers
    for kind, numbers in sorted(layers.items()):
        if lacking := sorted(most[kind.partition(".*.")[0]] - numbers, key=int):
            shown = ", ".join(lacking[:8]) + (", ..." if len(lacking) > 8 else "")
            _log.warning("%s: %s has no adapter in layers %s, and in others it has", source, kind, shown)


def own_file(folder: Path) -> Fields | None:
    """Return the content of `v2pe_adapter.json` of a PEFT folder, None where it has none."""
    path = folder / OWN_FILE
    if not os.path.lexists(path):
        return None
    fields = Fields(read_json_object(path, CheckpointError), printable(path), CheckpointError)
    fields.whole("format_version", least=1, most=_FORMAT)
    return fields
