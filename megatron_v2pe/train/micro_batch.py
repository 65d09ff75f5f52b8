"""From a batch as it was read to this rank's share: cut on the host, made ready where the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from megatron_v2pe.data.types import Batch
from megatron_v2pe.kernels.tiles import normalise_tiles
from megatron_v2pe.models.drop_path import DropPathKey
from megatron_v2pe.models.micro_batch import MicroBatch, cut_pack
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates


@dataclass(frozen=True)
class Cutter:
    """What turns batches into this rank's micro-batches."""

    coordinates: RankCoordinates
    first_stage: bool
    image_token_id: int
    tokens_per_tile: int
    device: torch.device
    """Of the model."""
    dtype: torch.dtype
    """Of pixels."""
    mean_std: tuple[Sequence[float], Sequence[float]]

    def cut(self, batch: Batch, drop_path: DropPathKey | None = None) -> MicroBatch:
        """Cut a batch of the host for this rank; the result lies on the host, its tiles still as bytes.

        Args:
            batch: the whole pack, with the tiles this rank encodes.
            drop_path: names the draws of the pack.
        """
        return cut_pack(
            batch.input_ids,
            batch.position_ticks,
            batch.seqlens,
            self.coordinates,
            labels=batch.labels,
            weights=batch.loss_weights,
            image_token_id=self.image_token_id,
            num_tiles=sum(batch.num_tiles),
            tokens_per_tile=self.tokens_per_tile,
            pixel_values=batch.tiles if batch.tiles.shape[0] else None,
            drop_path=drop_path,
            first_stage=self.first_stage,
        )

    def ready(self, batch: MicroBatch) -> MicroBatch:
        """Normalise the tiles of a batch that has been cut and moved; on CUDA the host does not wait for it."""
        if batch.pixel_values is None:
            return batch
        return replace(batch, pixel_values=normalise_tiles(batch.pixel_values, *self.mean_std, self.dtype))
