"""From a batch as it was read to this rank's share on the device, and the denominator all of a step share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_v2pe.data.image_transform import normalise_tiles
from megatron_v2pe.data.types import Batch
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import MicroBatch, cut_pack
from megatron_v2pe.parallel.placement import Placement


@dataclass(frozen=True)
class Cutter:
    """What turns batches into this rank's micro-batches."""

    placement: Placement
    first_stage: bool
    image_token_id: int
    tokens_per_tile: int
    device: torch.device
    dtype: torch.dtype
    """Of pixels."""
    mean_std: tuple[Sequence[float], Sequence[float]]

    def cut(self, batch: Batch, drop_path: DropPathKey | None = None) -> MicroBatch:
        """Cut a batch for this rank and move it to the device; its tiles come as bytes and are normalised there.

        Args:
            batch: the whole pack, with the tiles this rank encodes.
            drop_path: names the draws of the pack.
        """
        pixels = None
        if batch.tiles.shape[0]:
            pixels = normalise_tiles(batch.tiles.to(self.device), *self.mean_std).to(self.dtype)
        return cut_pack(
            batch.input_ids.to(self.device),
            batch.position_ticks.to(self.device),
            batch.seqlens,
            self.placement,
            labels=batch.labels.to(self.device),
            weights=batch.loss_weights.to(self.device),
            image_token_id=self.image_token_id,
            num_tiles=sum(batch.num_tiles),
            tokens_per_tile=self.tokens_per_tile,
            pixel_values=pixels,
            drop_path=drop_path,
            first_stage=self.first_stage,
        )


def global_weight(batches: Sequence[Batch], data_parallel_group: dist.ProcessGroup, device: torch.device) -> float:
    """Sum of loss weights over a step's micro-batches and data-parallel ranks: the one denominator of the loss.

    A step that supervises nothing has loss zero; its denominator is taken as 1.

    Args:
        batches: this rank's, whole: ranks that share a pack (context parallel) all have it, and count it once.
        data_parallel_group: ranks that work on different packs.
        device: of the process group's tensors.
    """
    total = torch.tensor(sum(batch.loss_weights.double().sum().item() for batch in batches), dtype=torch.float64)
    total = total.to(device)
    dist.all_reduce(total, group=data_parallel_group)
    return total.item() or 1.0
