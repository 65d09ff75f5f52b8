"""Rows of the vocabulary's tables in PEFT's form: `trainable_token_indices`, or whole tables among `modules_to_save`.

PEFT calls the rows of single tokens `MODULE.token_adapter.trainable_tokens_delta`. They are no differences: they stand
in place of the table's rows. `adapter_config.json` says which rows they are, and a tokenizer beside it what tokens. A
table that was trained in full has more rows than the base's where the model was given tokens before
(`resize_token_embeddings`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_v2pe.base.logging import get_logger
from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.table import TABLES, MappingTable
from megatron_v2pe.checkpoint.low_rank.adapter import WEIGHT
from megatron_v2pe.checkpoint.low_rank.peft_config import PeftConfig
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows, tokens_beside
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.grown_tokenizer import RECORD
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.tokenizer_settings import ADDED, CONFIG, MERGES, MODEL, TOKENS_MAP, VOCABULARY, WHOLE

DELTA = ".token_adapter.trainable_tokens_delta"
"""How the name of a tensor of rows ends."""
TOKENIZER_FILES = (MODEL, WHOLE, VOCABULARY, MERGES, ADDED, CONFIG, TOKENS_MAP, "chat_template.jinja", RECORD)
"""Files of a tokenizer that lie beside an adapter."""
_log = get_logger(__name__)


def rows_found(
    deltas: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    config: PeftConfig,
    rows: Mapping[str, TensorMapping],
    source: str,
    folder: Path | None,
) -> TokenRows | None:
    """Return the rows of the vocabulary's tables that a PEFT folder holds, None where it holds none.

    Args:
        deltas: tensors of rows, by name of the table's weight in the model.
        whole: tables that stand there whole with more rows than the model has, by the same names.
        config: says which rows they are.
        rows: of the model's table, by name.
        source: for errors.
        folder: with the tokenizer, if there is one.

    Raises:
        CheckpointError: rows of something that is no table, whose count is not that of the file's numbers, or different
            ones of embedding and head.
    """
    if config.token_rows and not deltas:
        raise CheckpointError(
            f"{source}: {config.file} names trainable_token_indices, and no tensor holds rows of tokens "
            f"(...{DELTA}): the file of weights is not whole, copy it again"
        )
    ids: dict[str, tuple[int, ...]] = {}
    tables: dict[str, Tensor] = {}
    for name, values in {**whole, **deltas}.items():
        mapping = rows.get(name)
        shown = f"{source}: {printable(name)[:200]}"
        if mapping is None or mapping.key not in TABLES or mapping.copy:
            raise CheckpointError(f"{shown}: rows of single tokens, and this is no embedding or head of the model")
        stated = config.rows_of(name.removesuffix(WEIGHT))
        if name in deltas and (values.dim() != 2 or len(stated) != values.shape[0]):
            raise CheckpointError(
                f"{shown}: has shape {list(values.shape)}, and {config.file} names {len(stated)} rows in "
                "trainable_token_indices: a row for each is expected"
            )
        if name in whole and name in deltas:
            values = whole[name].clone()
            if (most := max(stated)) >= values.shape[0]:
                raise CheckpointError(f"{shown}: row {most} of trainable_token_indices, the table has {len(values)}")
            values[torch.tensor(stated)] = deltas[name].to(values.dtype)
        ids[mapping.key] = tuple(range(values.shape[0])) if name in whole else stated
        tables[mapping.key] = values
    if not tables:
        return None
    first = next(iter(ids))
    if other := next((key for key in ids if ids[key] != ids[first]), None):
        raise CheckpointError(
            f"{source}: has {len(ids[first])} rows of {first}, and {len(ids[other])} of {other}, which are not those "
            "of the same tokens: merge it into its model with peft (merge_and_unload, then save_pretrained)"
        )
    lacking = {row.key for row in rows.values() if row.key in TABLES} - tables.keys()
    if lacking:
        _log.warning(
            "%s: holds rows of new tokens of %s alone, and none of %s: peft trained none there (name both modules in "
            "trainable_token_indices); those begin as the mean of the pieces that each token replaces",
            source,
            first,
            lacking.pop(),
        )
    tokens = () if folder is None else tokens_beside(folder)
    return TokenRows(source, ids[first], tables, tokens, folder if tokens else None)


def rows_in_peft_form(
    rows: TokenRows | None, table: MappingTable
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], list[str]]:
    """Return rows as PEFT's files have them.

    Args:
        rows: of an adapter.
        table: of the model, under the names that peft gives its modules.

    Returns:
        Tensors by name, without what peft puts before it; rows by module, for `trainable_token_indices`; modules that
        are whole, for `modules_to_save`.
    """
    if rows is None:
        return {}, {}, []
    names = {row.key: row.name for row in table.tensors if row.key in rows.tables and not row.copy}
    modules = {key: names[key].removesuffix(WEIGHT) for key in TABLES if key in rows.tables}
    if rows.are_whole:
        return {names[key]: rows.tables[key] for key in modules}, {}, list(modules.values())
    tensors = {f"{module}{DELTA}": rows.tables[key] for key, module in modules.items()}
    return tensors, dict.fromkeys(modules.values(), rows.ids), []


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
