"""Which rows and columns of whole tensors this rank's parameters hold, by Megatron-Core's description of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn


@dataclass(frozen=True)
class HeldPart:
    """A run of rows and columns of a whole tensor that lies together in a parameter."""

    key: str
    """The tensor's key in a checkpoint."""
    view: Tensor
    """The place in the parameter; what it holds beyond the whole tensor is padding."""
    begin: tuple[int, ...]
    """Where in the whole tensor the place begins."""

    def window(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return which entries of the whole tensor of a shape lie in the place."""
        return tuple(
            slice(min(begin, size), min(begin + held, size))
            for begin, held, size in zip(self.begin, self.view.shape, shape, strict=True)
        )

    def put(self, whole: Tensor) -> None:
        """Copy this part of a whole tensor into the parameter, zeros where the parameter holds padding."""
        found = whole[self.window(tuple(whole.shape))]
        if found.shape != self.view.shape:
            self.view.zero_()
        self.view[tuple(slice(0, size) for size in found.shape)].copy_(found)


def held_parts(model: nn.Module, adapters: bool = False) -> Iterator[tuple[str, list[HeldPart]]]:
    """Yield the name of every parameter of this rank's stage, and the parts of whole tensors that it holds.

    Args:
        model: the stage.
        adapters: those of adapters too.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"non_homogeneous_layers": True, "dp_cp_group": group, "adapters": adapters}
    for name, entry in cast(Any, model).sharded_state_dict(metadata=metadata).items():
        if isinstance(entry, ShardedTensorFactory):
            made = entry.build_fn(entry.key, cast(Any, entry.data).detach(), entry.replica_id, entry.flattened_range)
        elif isinstance(entry, ShardedTensor):
            made = [entry]
        else:
            continue
        pieces = [piece for piece in cast(list[ShardedTensor], made) if piece.data is not None]
        yield name, [HeldPart(one.key, cast(Tensor, one.data).detach(), tuple(one.global_offset)) for one in pieces]


def place_in(parameter: Tensor, view: Tensor) -> tuple[int, int]:
    """Return row and column of a parameter, a contiguous matrix, at which a view of it begins."""
    return divmod(int(view.storage_offset()) - int(parameter.storage_offset()), parameter.shape[1])


def rows_and_columns(parameter: Tensor, parts: list[HeldPart], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which row and column of the whole matrix each row and column of a parameter is; -1: padding.

    Args:
        parameter: [rows, columns] of this rank, contiguous.
        parts: what it holds.
        shape: of the whole matrix.

    Returns:
        int64 [rows] and int64 [columns].
    """
    found = tuple(torch.full((size,), -1, dtype=torch.int64) for size in parameter.shape)
    for part in parts:
        at = place_in(parameter, part.view)
        for axis, window in enumerate(part.window(shape)):
            count = window.stop - window.start
            found[axis][at[axis] : at[axis] + count] = torch.arange(window.start, window.stop)
    return found[0], found[1]
