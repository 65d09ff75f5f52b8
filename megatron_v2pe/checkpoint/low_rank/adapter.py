"""An adapter outside of any model: the change of each linear by its name in one layout, and its form in another.

Names are those of the weights in a `MappingTable`, which says where their rows lie in Megatron-Core's tensors. Two
tables of one model fill the same tensors; so every change can be restated for the linears of another table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import xxhash
from torch import Tensor

from megatron_v2pe.checkpoint.hf.mappings import TensorMapping
from megatron_v2pe.checkpoint.hf.table import MappingTable
from megatron_v2pe.checkpoint.low_rank.change import LowRankChange, put_together, rows_taken
from megatron_v2pe.checkpoint.low_rank.token_rows import TokenRows
from megatron_v2pe.errors import CheckpointError

WEIGHT = ".weight"


@dataclass(frozen=True)
class StatedBase:
    """What an adapter says of the model it was trained on."""

    path: str | None = None
    """The folder, as the run that trained it was given it."""
    fingerprint: str | None = None
    """See `checkpoint.adapters`; None: an adapter of another program, which states none."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of a model."""

    source: str
    """Where it was read, for messages."""
    table: MappingTable
    """The names of the changes; every changed weight stands in it."""
    changes: Mapping[str, LowRankChange]
    """By name of the weight."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that stand in place of the base's, by name: parts that were trained in full."""
    dropout: float = 0.0
    base: StatedBase = StatedBase()
    trained: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `config.json` with which it was trained, as far as that is known."""
    rows: TokenRows | None = None
    """Rows of the vocabulary's tables that stand in place of the base's."""

    def digest(self) -> str:
        """Return a checksum of all that it computes."""
        digest = xxhash.xxh3_128()
        for name, change in sorted(self.changes.items()):
            digest.update(f"{name} {change.alpha!r} {change.rank_stabilised}".encode())
            for half in (change.down, change.up):
                digest.update(f"{half.dtype} {list(half.shape)}".encode())
                digest.update(_bytes(half))
        for name, tensor in sorted(self.whole.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        if self.rows is not None:
            digest.update(f"{self.rows.ids} {self.rows.tokens}".encode())
            for key, values in sorted(self.rows.tables.items()):
                digest.update(f"{key} {values.dtype} {list(values.shape)}".encode())
                digest.update(_bytes(values))
        return digest.hexdigest()

    def named(self, table: MappingTable) -> Adapter:
        """Return the same adapter for the linears and the names of another table of the same model.

        Raises:
            CheckpointError: a part that was trained in full is cut differently there and not all of it is given.
        """
        if table is self.table:
            return self
        changes: dict[str, LowRankChange] = {}
        own = _by_key(self.table.tensors)
        for key, rows in _by_key(table.tensors).items():
            changed = [row for row in own.get(key, ()) if row.name in self.changes]
            for target in rows if changed else ():
                change = self._restated(target, changed)
                if change is not None:
                    changes[target.name] = change
        return replace(self, table=table, changes=changes, whole=self._whole(table))

    def _restated(self, target: TensorMapping, changed: Iterable[TensorMapping]) -> LowRankChange | None:
        """Return the change of one linear of another table."""
        parts: list[tuple[LowRankChange, Tensor]] = []
        place = key_rows(target)
        for row in changed:
            rows = hf_rows(row)[place]
            if (rows >= 0).any() and (part := rows_taken(self.changes[row.name], rows)) is not None:
                parts.append((part, torch.where(rows >= 0, torch.arange(len(rows)), -1)))
        if not parts:
            return None
        return parts[0][0] if len(parts) == 1 else put_together(parts)

    def _whole(self, table: MappingTable) -> dict[str, Tensor]:
        """Return the tensors that stand in place of the base's, under the names of another table."""
        if not self.whole:
            return {}
        own, found = _by_key(self.table.tensors), {}
        for key, rows in _by_key(table.tensors).items():
            given = [row for row in own.get(key, ()) if row.name in self.whole]
            for target in rows if given else ():
                place = key_rows(target)
                result = self.whole[given[0].name].new_zeros(target.shape)
                filled = torch.zeros(target.shape[0], dtype=torch.bool)
                for row in given:
                    at = hf_rows(row)[place]
                    result[at >= 0] = self.whole[row.name][at[at >= 0]]
                    filled |= at >= 0
                if filled.all():
                    found[target.name] = result
                elif filled.any():
                    names = ", ".join(row.name for row in given)
                    raise CheckpointError(
                        f"{self.source}: {names} were trained in full, and {target.name} of the other layout holds "
                        f"{int((~filled).sum())} more rows, which are not there: merge the adapter into its base"
                    )
        return found


def _bytes(tensor: Tensor) -> Any:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def key_rows(mapping: TensorMapping) -> Tensor:
    """Return for each row of an HF tensor its row in the Megatron-Core tensor, int64 [rows]."""
    result = torch.empty(mapping.shape[0], dtype=torch.int64)
    for run in mapping.rows.runs(mapping.shape[0]):
        if run.hf_row is not None:
            result[run.hf_row : run.hf_row + run.rows] = torch.arange(run.key_row, run.key_row + run.rows)
    return result


def hf_rows(mapping: TensorMapping) -> Tensor:
    """Return for each row of the Megatron-Core tensor that of the HF tensor, int64 [key rows]; -1: of another."""
    result = torch.full((mapping.key_rows,), -1, dtype=torch.int64)
    for run in mapping.rows.runs(mapping.shape[0]):
        if run.hf_row is not None:
            result[run.key_row : run.key_row + run.rows] = torch.arange(run.hf_row, run.hf_row + run.rows)
    return result


def _by_key(mappings: Iterable[TensorMapping]) -> dict[str, list[TensorMapping]]:
    found: dict[str, list[TensorMapping]] = {}
    for mapping in mappings:
        if not mapping.copy:
            found.setdefault(mapping.key, []).append(mapping)
    return found
