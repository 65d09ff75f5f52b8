"""One reader per copy of the model: its first rank loads a micro-batch, the others receive it.

Text goes to every tensor- and pipeline-parallel rank, tiles to those of the first stage. All travel as they are stored
(integers and bytes); normalisation happens on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.data.types import Batch

_TEXT = ("input_ids", "labels", "loss_weights", "position_ticks")


class Loader(Protocol):
    """What a feed reads from."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over this data-parallel rank's packs without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed."""
        ...


class DataFeed:
    """Micro-batches for every rank that works on the same packs."""

    def __init__(
        self,
        loader: Loader | None,
        model_group: dist.ProcessGroup,
        tile_group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        """Set up the feed; every rank of `model_group` calls this.

        Args:
            loader: on the group's first rank, None on the others.
            model_group: all ranks that share a copy of the model.
            tile_group: those of them that need tiles, the first rank among them; None on a rank that needs none.
            device: where received tensors go.
        """
        assert (loader is not None) == (model_group.rank() == 0)
        self.loader = loader
        self._batches = iter(loader) if loader is not None else None
        self._model_group, self._tile_group = model_group, tile_group
        self._source = dist.get_process_group_ranks(model_group)[0]
        self._device = device

    def next(self) -> Batch:
        """Return the next micro-batch, the same on every rank; without tiles on those that need none."""
        batch = next(self._batches) if self._batches is not None else None
        if self._model_group.size() == 1:
            assert batch is not None
            return batch
        header: list[Any] = [None]
        if batch is not None:
            shapes = {name: (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) for name in _TEXT}
            header = [(shapes, tuple(batch.tiles.shape), batch.seqlens, batch.num_tiles, batch.sources)]
        dist.broadcast_object_list(header, src=self._source, group=self._model_group, device=self._device)
        shapes, tile_shape, seqlens, num_tiles, sources = header[0]
        tensors = {
            name: self._share(getattr(batch, name, None), shape, dtype, self._model_group)
            for name, (shape, dtype) in shapes.items()
        }
        if self._tile_group is None:
            tile_shape = (0, *tile_shape[1:])
        tiles = self._share(batch.tiles if batch else None, tile_shape, torch.uint8, self._tile_group)
        return Batch(**tensors, tiles=tiles, seqlens=seqlens, num_tiles=num_tiles, sources=sources)

    def _share(
        self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, group: dist.ProcessGroup | None
    ) -> Tensor:
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
        tensor = tensor.to(self._device).contiguous()
        if tensor.numel() and group is not None and group.size() > 1:
            dist.broadcast(tensor, src=self._source, group=group)
        return tensor
