"""How one tensor of an HF checkpoint becomes rows of one tensor of a Megatron-Core checkpoint, and back.

A table has one `TensorMapping` for every HF tensor. Its row kind says where the rows go:

| kind | HF tensor | rows in Megatron-Core's tensor |
|---|---|---|
| `DIRECT` | the whole tensor, gate and up in one tensor too | the same |
| `Stacked(0, 2)`, `Stacked(1, 2)` | gate, up | `linear_fc1`: all of gate, then all of up |
| `QueryGroups.queries`, `.keys`, `.values` | `q_proj`, `k_proj`, `v_proj`: weight or bias | `linear_qkv`, see below |
| `QueryGroups.part_by_part` | all queries, all keys, all values in one tensor | `linear_qkv` |
| `QueryGroups.grouped` | one tensor in Megatron-Core's own order (InternLM2's `wqkv`) | `linear_qkv` |

`linear_qkv` holds query group after query group, so that tensor-parallel ranks can divide it. Four heads in two groups:

    HF      q_proj  q0 q1 | q2 q3      k_proj  k0 | k1      v_proj  v0 | v1
    rows            group 0: q0 q1 k0 v0        group 1: q2 q3 k1 v1

Every kind can be undone to the bit: it moves rows, it never computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class RowRun:
    """Rows that lie together on both sides."""

    key_row: int
    """First of them in the Megatron-Core tensor."""
    rows: int
    hf_row: int | None
    """First of them in the HF tensor; None: they are zeros, which the HF tensor does not have."""


class RowKind(Protocol):
    """Where the rows of an HF tensor lie in a Megatron-Core tensor."""

    def key_rows(self, rows: int) -> int:
        """Return the rows of the whole Megatron-Core tensor, for an HF tensor of `rows` rows."""
        ...

    def runs(self, rows: int) -> Iterable[RowRun]:
        """Return where the rows of an HF tensor of `rows` rows lie."""
        ...


@dataclass(frozen=True)
class Stacked:
    """The tensor is one of several of equal size that are put on top of one another."""

    part: int
    """Which of them, from 0."""
    parts: int

    def key_rows(self, rows: int) -> int:
        """Return the rows of all parts."""
        return self.parts * rows

    def runs(self, rows: int) -> Iterable[RowRun]:
        """Return the one run, behind the parts before."""
        return [RowRun(self.part * rows, rows, 0)]


DIRECT = Stacked(0, 1)
"""Both sides have the same rows in the same order."""


@dataclass(frozen=True)
class Interleaved:
    """The tensor holds parts of attention heads, which go group by group into the joint projection."""

    groups: QueryGroups
    parts: tuple[str, ...]
    """What the HF tensor holds, one part behind the other: `q`, `k`, `v`, or `qkv` where it has the groups' order."""

    def key_rows(self, rows: int) -> int:
        """Return the rows of the joint projection."""
        return self.groups.all_groups * (self.groups.shared + 2) * self._width(rows)

    def runs(self, rows: int) -> Iterator[RowRun]:
        """Yield the rows of every part and group, then those of groups that are padding."""
        width, begin = self._width(rows), 0
        for part in self.parts:
            offset, heads = self.groups.place_in_group(part)
            for group in range(self.groups.all_groups):
                key_row = (group * (self.groups.shared + 2) + offset) * width
                hf_row = begin + group * heads * width if group < self.groups.groups else None
                yield RowRun(key_row, heads * width, hf_row)
            begin += self.groups.groups * heads * width

    def apart(self, rows: int) -> list[tuple[str, Interleaved, int]]:
        """Return the parts as tensors of their own: `q`, `k` or `v`, where its rows lie, and how many they are.

        Args:
            rows: of the HF tensor that holds all parts.
        """
        width, parts = self._width(rows), [letter for part in self.parts for letter in part]
        return [
            (part, Interleaved(self.groups, (part,)), self.groups.groups * self.groups.place_in_group(part)[1] * width)
            for part in parts
        ]

    def _width(self, rows: int) -> int:
        """Return the width of a head."""
        heads = self.groups.groups * sum(self.groups.place_in_group(part)[1] for part in self.parts)
        if rows % heads:
            raise ConfigError(f"a table maps {rows} rows to {heads} heads, which do not divide them")
        return rows // heads


@dataclass(frozen=True)
class QueryGroups:
    """Heads of an attention layer: every group has some queries that share a key and a value.

    A tensor-parallel size has to divide the number of groups. Where it does not, groups of zeros can be put behind the
    others: their values are zero, so they add nothing, and with them their gradients stay zero.
    """

    heads: int
    """Query heads; as many as groups where every head has its own key and value."""
    groups: int
    padded_groups: int | None = None
    """Groups with those of zeros; None: there are none of zeros."""

    @property
    def shared(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups

    @property
    def all_groups(self) -> int:
        """Groups with those of zeros."""
        return self.groups if self.padded_groups is None else self.padded_groups

    def place_in_group(self, part: str) -> tuple[int, int]:
        """Return where a part begins in a group, and how long it is there, in heads."""
        return {
            "q": (0, self.shared),
            "k": (self.shared, 1),
            "v": (self.shared + 1, 1),
            "qkv": (0, self.shared + 2),
        }[part]

    @property
    def queries(self) -> Interleaved:
        """The rows of `q_proj`."""
        return Interleaved(self, ("q",))

    @property
    def keys(self) -> Interleaved:
        """The rows of `k_proj`."""
        return Interleaved(self, ("k",))

    @property
    def values(self) -> Interleaved:
        """The rows of `v_proj`."""
        return Interleaved(self, ("v",))

    @property
    def part_by_part(self) -> Interleaved:
        """The rows of a tensor with all queries, then all keys, then all values."""
        return Interleaved(self, ("q", "k", "v"))

    @property
    def grouped(self) -> Interleaved:
        """The rows of a tensor with the queries, the key and the value of one group after the other."""
        return Interleaved(self, ("qkv",))

    def columns(self, head_dim: int) -> int:
        """Return the columns of the output projection, those of zeros among them."""
        return self.all_groups * self.shared * head_dim


@dataclass(frozen=True)
class TensorMapping:
    """One HF tensor and the rows of a Megatron-Core tensor that hold it."""

    name: str
    """Name in the HF checkpoint."""
    shape: tuple[int, ...]
    """Shape in the HF checkpoint."""
    key: str
    """Key in the Megatron-Core checkpoint."""
    rows: RowKind = DIRECT
    columns: int | None = None
    """Columns of the Megatron-Core tensor where it has more than the HF tensor: those behind are zeros."""
    may_be_padded: bool = False
    """Training checkpoints hold more rows than `key_rows`: those beyond are padding."""
    copy: bool = False
    """Another tensor has these rows too: the output projection of a tied model, which few checkpoints hold."""

    @property
    def key_rows(self) -> int:
        """Rows of the whole Megatron-Core tensor."""
        return self.rows.key_rows(self.shape[0])

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Shape of the whole Megatron-Core tensor."""
        columns = self.shape[1:] if self.columns is None else (self.columns, *self.shape[2:])
        return (self.key_rows, *columns)

    def stretches(self) -> list[list[RowRun]]:
        """Return the runs by the Megatron-Core tensor's order, those together that are neighbours there.

        Runs that are neighbours on both sides are one run.
        """
        result: list[list[RowRun]] = []
        for run in sorted(self.rows.runs(self.shape[0]), key=lambda run: run.key_row):
            last = result[-1][-1] if result else None
            if last is None or last.key_row + last.rows != run.key_row:
                result.append([run])
            elif run.hf_row == (None if last.hf_row is None else last.hf_row + last.rows):
                result[-1][-1] = replace(last, rows=last.rows + run.rows)
            else:
                result[-1].append(run)
        return result

    def to_mcore(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield every stretch of the Megatron-Core tensor that an HF tensor fills: its first row, and its rows."""
        for runs in self.stretches():
            parts = [
                tensor.new_zeros(run.rows, *tensor.shape[1:])
                if run.hf_row is None
                else tensor[run.hf_row : run.hf_row + run.rows]
                for run in runs
            ]
            rows = parts[0] if len(parts) == 1 else torch.cat(parts)
            if self.columns is not None:
                rows = F.pad(rows, (0, self.columns - self.shape[1]))
            yield runs[0].key_row, rows

    def to_hf(self, read: Callable[[int, int], Tensor]) -> Tensor:
        """Return the HF tensor.

        Args:
            read: gives rows of the Megatron-Core tensor: the first of them, and how many.

        Raises:
            CheckpointError: what is padding holds other numbers than zero, for which HF has no place.
        """
        stretches = self.stretches()
        result: Tensor | None = None
        for runs in stretches:
            rows = read(runs[0].key_row, sum(run.rows for run in runs))
            if self.columns is not None:
                self._check_zeros(rows[:, self.shape[1] :])
                rows = rows[:, : self.shape[1]].contiguous()
            if len(stretches) == 1 and len(runs) == 1:
                return rows
            if result is None:
                result = rows.new_empty(self.shape)
            for run, part in zip(runs, rows.split([run.rows for run in runs]), strict=True):
                if run.hf_row is None:
                    self._check_zeros(part)
                else:
                    result[run.hf_row : run.hf_row + run.rows] = part
        assert result is not None
        return result

    def _check_zeros(self, padding: Tensor) -> None:
        if padding.any():
            raise CheckpointError(
                f"{self.key}: {int(padding.count_nonzero())} of {padding.numel()} values of its padding are not zero; "
                f"{self.name} has no place for them"
            )


def mapped(name: str, key: str, *shape: int, rows: RowKind = DIRECT, columns: int | None = None) -> TensorMapping:
    """Return the mapping of a tensor: its HF name, the key it goes to, its HF shape and its row kind."""
    return TensorMapping(name, shape, key, rows, columns)


def vocabulary(name: str, key: str, rows: int, width: int) -> TensorMapping:
    """Return the mapping of an embedding or an output projection, whose rows are padded in training."""
    return TensorMapping(name, (rows, width), key, may_be_padded=True)
