"""How one tensor of an HF checkpoint becomes rows of one tensor of a Megatron-Core checkpoint, and back.

Every kind of mapping is invertible to the bit: it moves rows, it never computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from megatron_v2pe.errors import CheckpointError


class RowOrder(Protocol):
    """An order of rows on either side."""

    def to_mcore(self, tensor: Tensor) -> Tensor:
        """Reorder the rows of an HF tensor as Megatron-Core has them."""
        ...

    def to_hf(self, tensor: Tensor) -> Tensor:
        """Undo `to_mcore`."""
        ...


@dataclass(frozen=True)
class SameOrder:
    """Both sides have the same rows in the same order."""

    def to_mcore(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor

    def to_hf(self, tensor: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return tensor


SAME_ORDER = SameOrder()


@dataclass(frozen=True)
class HeadByHead:
    """HF: all q, all k, all v. Megatron-Core: q, k, v of head 0, q, k, v of head 1, ..., so that heads can be split."""

    heads: int

    def to_mcore(self, tensor: Tensor) -> Tensor:
        """Reorder [3 * heads * d, ...] rows from (3, heads, d) to (heads, 3, d)."""
        return tensor.unflatten(0, (3, self.heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()

    def to_hf(self, tensor: Tensor) -> Tensor:
        """Reorder [heads * 3 * d, ...] rows from (heads, 3, d) to (3, heads, d)."""
        return tensor.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2).contiguous()


@dataclass(frozen=True)
class TensorMapping:
    """One HF tensor and the rows of a Megatron-Core tensor that hold it."""

    name: str
    """In the HF checkpoint."""
    shape: tuple[int, ...]
    """In the HF checkpoint."""
    key: str
    """In the Megatron-Core checkpoint."""
    key_rows: int
    """Rows of the whole Megatron-Core tensor; its other axes are those of `shape`."""
    first_row: int = 0
    """Where in the Megatron-Core tensor the rows begin."""
    order: RowOrder = SAME_ORDER
    may_be_padded: bool = False
    """Training checkpoints hold more rows than `key_rows`: those beyond are padding."""

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Shape of the whole Megatron-Core tensor."""
        return (self.key_rows, *self.shape[1:])


@dataclass(frozen=True)
class MappingTable:
    """All tensors of an architecture."""

    tensors: tuple[TensorMapping, ...]

    def by_name(self) -> dict[str, TensorMapping]:
        """Return the mappings by HF name."""
        return {mapping.name: mapping for mapping in self.tensors}

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
