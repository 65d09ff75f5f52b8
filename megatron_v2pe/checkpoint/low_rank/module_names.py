"""Which weight of a model a tensor of an adapter belongs to, by the names that programs give modules.

| written by | name of a module |
|---|---|
| peft on transformers' own class | `model.language_model.layers.0.self_attn.q_proj` |
| the same before transformers 4.52 | `language_model.model.layers.0.self_attn.q_proj` |
| peft on the published class | `language_model.model.layers.0.attention.wqkv` |
| peft on the language model of either alone | `model.layers.0.self_attn.q_proj` |
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.checkpoint.hf.native_table import MODULE_NAMES
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.checkpoint.low_rank.adapter import WEIGHT
from megatron_v2pe.errors import CheckpointError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.native_config import NATIVE, ORIGINAL

_MOST_NAMED = 3


@dataclass(frozen=True)
class NamedModules:
    """The table whose names an adapter's modules have."""

    layout: str
    """`original` or `native`."""
    table: MappingTable
    before: str = ""
    """Stands before every name of the adapter's to make it one of the table's."""


def module_table(model: InternVLConfig, layout: str) -> MappingTable:
    """Return the table of a model under the names that peft gives its modules in a layout."""
    table = mapping_table(model, layout)
    return table.renamed(MODULE_NAMES) if layout == NATIVE else table


def modules_of(model: InternVLConfig, modules: Collection[str], source: str) -> NamedModules:
    """Return the table in which an adapter's modules stand, of those that programs write.

    Args:
        model: of the base.
        modules: names without what peft puts before them.
        source: for the error.

    Raises:
        CheckpointError: some stand in none; names them, with the nearest of the table that has most.
    """
    native = mapping_table(model, NATIVE)
    original = mapping_table(model, ORIGINAL)
    forms = [
        NamedModules(ORIGINAL, original),
        NamedModules(NATIVE, native),
        NamedModules(NATIVE, native.renamed(MODULE_NAMES)),
        NamedModules(ORIGINAL, original, "language_model."),
        NamedModules(NATIVE, native, "language_model."),
    ]
    left: list[tuple[int, NamedModules, list[str]]] = []
    for form in forms:
        names = {row.name.removesuffix(WEIGHT) for row in form.table.tensors}
        strange = sorted(name for name in modules if form.before + name not in names)
        if not strange:
            return form
        left.append((len(strange), form, strange))
    count, form, strange = min(left, key=lambda one: one[0])
    names = [row.name.removesuffix(WEIGHT) for row in form.table.tensors if len(row.shape) == 2]
    shown = ", ".join(printable(name)[:120] for name in strange[:_MOST_NAMED]) + (
        ", ..." if count > _MOST_NAMED else ""
    )
    nearest = did_you_mean(form.before + strange[0], names, otherwise="no module of this model is called like that")
    raise CheckpointError(
        f"{source}: {count} of {len(modules)} modules that the adapter changes are not part of the model "
        f"({model.llm.architecture}): {shown}{nearest}"
    )
