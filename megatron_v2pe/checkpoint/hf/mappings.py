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

Every kind can be undone to the bit: it moves rows, it never computes. Tensors go over one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_v2pe.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Run:
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

    def runs(self, rows: int) -> Iterable[Run]:
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

    def runs(self, rows: int) -> Iterable[Run]:
        """Return the one run, behind the parts before."""
        return [Run(self.part * rows, rows, 0)]


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

    def runs(self, rows: int) -> Iterator[Run]:
        """Yield the rows of every part and group, then those of groups that are padding."""
        width, begin = self._width(rows), 0
        for part in self.parts:
            offset, heads = self.groups.place_in_group(part)
            for group in range(self.groups.all_groups):
                key_row = (group * (self.groups.shared + 2) + offset) * width
                hf_row = begin + group * heads * width if group < self.groups.groups else None
                yield Run(key_row, heads * width, hf_row)
            begin += self.groups.groups * heads * width

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
    """In the HF checkpoint."""
    shape: tuple[int, ...]
    """In the HF checkpoint."""
    key: str
    """In the Megatron-Core checkpoint."""
    rows: RowKind = DIRECT
    columns: int | None = None
    """Columns of the Megatron-Core tensor where it has more than the HF tensor: those behind are zeros."""
    may_be_padded: bool = False
    """Training checkpoints hold more rows than `key_rows`: those beyond are padding."""

    @property
    def key_rows(self) -> int:
        """Rows of the whole Megatron-Core tensor."""
        return self.rows.key_rows(self.shape[0])

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Shape of the whole Megatron-Core tensor."""
        columns = self.shape[1:] if self.columns is None else (self.columns, *self.shape[2:])
        return (self.key_rows, *columns)

    def stretches(self) -> list[list[Run]]:
        """Return the runs by the Megatron-Core tensor's order, those together that are neighbours there.

        Runs that are neighbours on both sides are one run.
        """
        result: list[list[Run]] = []
        for run in sorted(self.rows.runs(self.shape[0]), key=_key_row):
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


@dataclass(frozen=True)
class MappingTable:
    """All tensors of an architecture."""

    tensors: tuple[TensorMapping, ...]

    def by_name(self) -> dict[str, TensorMapping]:
        """Return the mappings by HF name."""
        return {mapping.name: mapping for mapping in self.tensors}

    def renamed(self, rules: Mapping[str, str]) -> MappingTable:
        r"""Return the table of a checkpoint that holds the same tensors under other names.

        Args:
            rules: regular expression -> what stands in its place, as in `re.sub`; all are applied to every HF name, in
                their order: `{r"^language_model\.model\.": "model.language_model."}`.

        Raises:
            ConfigError: two tensors would have one name.
        """
        names: dict[str, str] = {}
        for mapping in self.tensors:
            name = mapping.name
            for pattern, replacement in rules.items():
                name = re.sub(pattern, replacement, name)
            if name in names:
                raise ConfigError(f"names of tensors: {names[name]} and {mapping.name} would both be {name}")
            names[name] = mapping.name
        renamed = zip(self.tensors, names, strict=True)
        return MappingTable(tuple(replace(mapping, name=name) for mapping, name in renamed))

    def check(self, source: str) -> MappingTable:
        """Return the table if it fills every row of every Megatron-Core tensor exactly once.

        Raises:
            ConfigError: it does not, or a name stands in it twice; the tensors are named after `source`.
        """
        if len(self.by_name()) != len(self.tensors):
            names = [mapping.name for mapping in self.tensors]
            raise ConfigError(f"{source}: {next(name for name in names if names.count(name) > 1)} stands there twice")
        of_key: dict[str, list[TensorMapping]] = {}
        for mapping in self.tensors:
            of_key.setdefault(mapping.key, []).append(mapping)
        for key, mappings in of_key.items():
            if problem := _fault(mappings):
                names = ", ".join(mapping.name for mapping in mappings)
                raise ConfigError(f"{source}: {key}: {problem}; it is filled from {names}")
        return self

    def check_names(self, found: Iterable[str], source: str) -> None:
        """Check that the tensors of an HF checkpoint are exactly those of the table.

        Raises:
            CheckpointError: tensors are missing or left over; they are named.
        """
        _check_sets({mapping.name for mapping in self.tensors}, set(found), source)

    def check_shape(self, mapping: TensorMapping, shape: Sequence[int], source: str) -> None:
        """Check the shape of an HF tensor.

        Raises:
            CheckpointError: names the tensor and both shapes.
        """
        if tuple(shape) != mapping.shape:
            raise CheckpointError(
                f"{source}: {mapping.name} has shape {_text(shape)}, config.json asks for {_text(mapping.shape)}"
            )

    def check_keys(self, found: Mapping[str, Sequence[int]], source: str) -> None:
        """Check that the tensors of a Megatron-Core checkpoint are exactly those of the table, by key and shape.

        Raises:
            CheckpointError: tensors are missing, left over or of another shape; they are named.
        """
        _check_sets({mapping.key for mapping in self.tensors}, set(found), source)
        for mapping in self.tensors:
            shape, expected = tuple(found[mapping.key]), mapping.key_shape
            padded = mapping.may_be_padded and len(shape) == len(expected) and shape[0] >= expected[0]
            if shape != expected and not (padded and shape[1:] == expected[1:]):
                at_least = "at least " if mapping.may_be_padded else ""
                raise CheckpointError(
                    f"{source}: {mapping.key} has shape {_text(shape)}, hf/config.json asks for "
                    f"{at_least}{_text(expected)}"
                )


def mapped(name: str, key: str, *shape: int, rows: RowKind = DIRECT, columns: int | None = None) -> TensorMapping:
    """Return the mapping of a tensor: its HF name, the key it goes to, its HF shape and its row kind."""
    return TensorMapping(name, shape, key, rows, columns)


def vocabulary(name: str, key: str, rows: int, width: int) -> TensorMapping:
    """Return the mapping of an embedding or an output projection, whose rows are padded in training."""
    return TensorMapping(name, (rows, width), key, may_be_padded=True)


def _fault(mappings: Sequence[TensorMapping]) -> str | None:
    """Say what is wrong with the tensors that fill one Megatron-Core tensor, None where nothing is."""
    shapes = {mapping.key_shape for mapping in mappings}
    if len(shapes) > 1:
        return f"its shape would be {' and '.join(map(_text, sorted(shapes)))}"
    filled = 0
    for run in sorted(chain.from_iterable(mapping.rows.runs(mapping.shape[0]) for mapping in mappings), key=_key_row):
        if run.key_row < filled:
            return f"row {run.key_row} is filled twice"
        if run.key_row > filled:
            break
        filled += run.rows
    rows = mappings[0].key_rows
    return None if filled == rows else f"row {filled} of {rows} is filled from nowhere"


def _key_row(run: Run) -> int:
    return run.key_row


def _check_sets(expected: set[str], found: set[str], source: str) -> None:
    problems = [
        f"{len(names)} tensors {what}: {_some(names)}"
        for what, names in (("are missing", expected - found), ("are not part of this architecture", found - expected))
        if names
    ]
    if problems:
        raise CheckpointError(f"{source}: {len(found)} tensors, expected {len(expected)}; {'; '.join(problems)}")


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"
