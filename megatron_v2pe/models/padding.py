"""Rows and columns of zeros that make a tensor divisible among tensor-parallel ranks, and that no checkpoint holds.

A rank holds `share(count, degree)` (`config_sections.py`) of so many heads, columns or tokens; what the ranks hold
beyond `count` lies at the end. Zero stays zero: a padded head has zero queries, keys and values, and zero columns in
the projection behind it; a padded column of an MLP has zero weights before and behind the activation, which is zero
there; a padded token is masked out of the softmax. The gradient of every such weight is a product with one of these
zeros, and so an optimizer's moments of it are zero, and what weight decay takes of it.

A parameter with padding carries a `Padding`. Checkpoints hold it without (`without_padding`), the optimizer's state of
it likewise, so that one checkpoint serves every tensor-parallel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from megatron_v2pe.errors import CheckpointError

_NAME = "v2pe_padding"
"""Attribute of a parameter that has padding."""


@dataclass(frozen=True)
class Padding:
    """Which entries of this rank's part of a tensor are padding: the last ones along an axis."""

    axis: int
    size: int
    """Length of the whole tensor along the axis, without padding."""
    kept: int
    """Entries along the axis that this rank holds of it."""

    def cut(self, part: Tensor) -> Tensor:
        """Return a view of what is no padding."""
        return part.narrow(self.axis, 0, self.kept)

    def of(self, part: Tensor) -> Tensor:
        """Return a view of the padding."""
        return part.narrow(self.axis, self.kept, part.shape[self.axis] - self.kept)


@dataclass
class CutPart(ShardedTensor):
    """A rank's part of a tensor without its padding, which may be nothing."""

    whole: Tensor | None = None
    """This rank's part with its padding; `data` is a view of it."""
    padding: Padding | None = None

    def without_data(self) -> CutPart:
        """Return a copy that says where the part lies, and holds no values."""
        return replace(self, data=None, whole=None)

    def filled(self) -> Tensor:
        """Return the part with its padding, which becomes zero."""
        assert self.whole is not None and self.padding is not None
        whole = self.whole.detach()
        self.padding.of(whole).zero_()
        return whole


def mark(parameter: Tensor | None, axis: int, size: int, group: dist.ProcessGroup) -> None:
    """Say of a parameter that ranks divide along an axis how long it is without padding.

    Args:
        parameter: this rank's part, of equal shape on all ranks; None or nothing, of a linear without a bias, is let
            pass.
        axis: that is divided.
        size: of the whole along it, at most what all ranks hold.
        group: the ranks, in the order of their parts.
    """
    if parameter is None or not parameter.numel():
        return
    held = parameter.shape[axis]
    assert size <= held * group.size(), (parameter.shape, axis, size, group.size())
    if size < held * group.size():
        kept = min(max(size - held * group.rank(), 0), held)
        setattr(parameter, _NAME, Padding(axis, size, kept))


def of_parameter(parameter: Tensor) -> Padding | None:
    """Return what of a parameter is padding; None: nothing on any rank."""
    return getattr(parameter, _NAME, None)


def paddings(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Padding]]:
    """Yield name, parameter and padding of every parameter that has some on any rank."""
    for name, parameter in model.named_parameters():
        if (padding := of_parameter(parameter)) is not None:
            yield name, parameter, padding


def clear(model: nn.Module) -> None:
    """Make all padding zero."""
    with torch.no_grad():
        for _, parameter, padding in paddings(model):
            padding.of(parameter).zero_()


def check(model: nn.Module) -> None:
    """Check that all padding is zero; it reads one number of the device.

    Raises:
        CheckpointError: it is not, so that the model is no longer one that a checkpoint can hold; names a tensor.
    """
    parts = [(name, padding.of(parameter)) for name, parameter, padding in paddings(model)]
    parts = [(name, part) for name, part in parts if part.numel()]
    if not parts:
        return
    counts = torch.stack([part.count_nonzero() for _, part in parts]).tolist()
    for (name, part), count in zip(parts, counts, strict=True):
        if count:
            raise CheckpointError(
                f"{name}: {count} of {part.numel()} values of its padding are not zero; a checkpoint has no place for "
                "them. An optimizer that changes a weight whose gradient is zero, other than by shrinking it, cannot "
                "train this model at this tensor_model_parallel_size"
            )


def without_padding(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a distributed checkpoint stores of a model, its parameters without padding."""
    return {name: _cut(entry) if isinstance(entry, ShardedTensor) else entry for name, entry in state.items()}


def _cut(entry: ShardedTensor) -> ShardedTensor | ShardedTensorFactory:
    padding = None if entry.data is None else of_parameter(entry.data)
    if padding is None:
        return entry
    assert entry.data is not None and entry.prepend_axis_num == 0

    def build(key: str, data: Tensor, replica_id: Any, _: slice | None) -> list[CutPart]:
        kept = padding.cut(data)
        shape, offset = list(entry.global_shape), list(entry.global_offset)
        shape[padding.axis] = padding.size
        offset[padding.axis] = min(offset[padding.axis], padding.size)
        return [
            CutPart(
                key,
                kept,
                data.dtype,
                tuple(kept.shape),
                tuple(shape),
                tuple(offset),
                None,  # ranks hold parts of different sizes, of which Megatron-Core checks nothing; the reader does
                replica_id,
                allow_shape_mismatch=entry.allow_shape_mismatch,
                whole=data,
                padding=padding,
            )
        ]

    return ShardedTensorFactory(entry.key, entry.data, build, lambda parts: parts[0], entry.replica_id)
