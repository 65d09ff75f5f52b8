"""One micro-batch as tensors on the device, and the denominator all micro-batches of a step share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.data.image_transform import normalise_tiles
from megatron_v2pe.data.types import Batch
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.head import Targets


@dataclass(frozen=True)
class MicroBatch:
    """What `InternVLModel.forward` takes."""

    input_ids: Tensor
    """int64 [S]."""
    position_ticks: Tensor
    """int64 [S]."""
    seqlens: tuple[int, ...]
    pixel_values: Tensor | None
    """[tiles, 3, size, size] in the compute type, None without images or off the first stage."""
    targets: Targets
    drop_path: DropPathKey | None
    num_tiles: int
    """Tiles of the pack, counted on every stage."""

    @classmethod
    def from_batch(
        cls,
        batch: Batch,
        device: torch.device,
        dtype: torch.dtype,
        mean_std: tuple[Sequence[float], Sequence[float]],
        drop_path: DropPathKey | None = None,
    ) -> MicroBatch:
        """Move a batch to the device; tiles travel as bytes and are normalised there."""
        labels, weights = batch.labels.to(device), batch.loss_weights.to(device)
        pixels = None
        if batch.tiles.shape[0]:
            pixels = normalise_tiles(batch.tiles.to(device), *mean_std).to(dtype)
        return cls(
            input_ids=batch.input_ids.to(device),
            position_ticks=batch.position_ticks.to(device),
            seqlens=tuple(batch.seqlens),
            pixel_values=pixels,
            targets=Targets.from_labels(labels, weights),
            drop_path=drop_path,
            num_tiles=sum(batch.num_tiles),
        )


def global_weight(batches: Sequence[Batch], data_parallel_group: dist.ProcessGroup, device: torch.device) -> float:
    """Sum of loss weights over a step's micro-batches and data-parallel ranks: the one denominator of the loss.

    A step that supervises nothing has loss zero; its denominator is taken as 1.
    """
    total = torch.tensor(sum(batch.loss_weights.double().sum().item() for batch in batches), dtype=torch.float64)
    total = total.to(device)
    dist.all_reduce(total, group=data_parallel_group)
    return total.item() or 1.0
