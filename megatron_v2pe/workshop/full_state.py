"""Whole tensors out of and into a sharded model, by Megatron-Core's own sharding metadata.

What parity tests need: the same weights in every layout, and every gradient of every layout as the one full tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

METADATA = {"non_homogeneous_layers": True}
REPLICAS_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""Largest difference, over the largest entry, between two ranks' values of one shard."""


def sharded_pieces(model: nn.Module, value_of: Callable[[nn.Parameter], Tensor]) -> list[ShardedTensor]:
    """List the shards of `value_of(parameter)` for all parameters of this rank's model."""
    from megatron.core import parallel_state

    metadata = {**METADATA, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    pieces: list[ShardedTensor] = []
    for entry in model.sharded_state_dict(metadata=metadata).values():  # type: ignore[operator]
        if isinstance(entry, ShardedTensorFactory):
            value = value_of(entry.data)  # type: ignore[arg-type]
            made = entry.build_fn(entry.key, value, entry.replica_id, entry.flattened_range)
            pieces.extend(cast(list[ShardedTensor], made))
        elif isinstance(entry, ShardedTensor):
            entry.data = value_of(entry.data)  # type: ignore[arg-type]
            pieces.append(entry)
    return pieces


def load_full(model: nn.Module, full: dict[str, Tensor]) -> None:
    """Copy whole tensors, by checkpoint key, into this rank's shards; what is padding stays zero."""
    with torch.no_grad():
        for piece in sharded_pieces(model, lambda parameter: parameter.detach()):
            source = full[piece.key]
            window, target = _overlap(piece, tuple(source.shape))
            assert piece.data is not None
            if target != tuple(piece.data.shape):
                piece.data.zero_()
            piece.data[tuple(slice(0, n) for n in target)].copy_(source[window])


def gather_full(model: nn.Module, value_of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
    """Assemble whole tensors of `value_of(parameter)` from the shards of every rank, on every rank.

    Where several ranks hold the same shard (tensor-parallel replicas, data parallelism) their values must agree to
    rounding; the largest disagreement is what a forgotten reduction looks like, so it raises.
    """

    def value(parameter: Any) -> Tensor:
        found = value_of(parameter)
        return torch.zeros_like(parameter) if found is None else found

    local = [
        (piece.key, tuple(piece.global_shape), tuple(piece.global_offset), piece.data.detach().cpu().clone())  # type: ignore[union-attr]
        for piece in sharded_pieces(model, value)
    ]
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, local)
    full: dict[str, Tensor] = {}
    seen: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for key, shape, offset, data in (item for rank in ranks for item in rank if item[3].numel()):
        known = seen.setdefault((key, offset), data)
        scale = max(known.abs().max().item(), 1e-12)
        difference = (known - data).abs().max().item() / scale
        if difference > REPLICAS_AGREE[data.dtype]:
            raise AssertionError(f"{key}: replicas at offset {offset} differ by {difference:.1e} relative")
        whole = full.setdefault(key, torch.zeros(shape, dtype=data.dtype))
        whole[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))] = data
    return full


def _overlap(piece: ShardedTensor, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    assert piece.data is not None
    window, target = [], []
    for offset, length, total in zip(piece.global_offset, piece.data.shape, shape, strict=True):
        end = min(offset + length, total)
        window.append(slice(min(offset, total), end))
        target.append(max(end - offset, 0))
    return tuple(window), tuple(target)
