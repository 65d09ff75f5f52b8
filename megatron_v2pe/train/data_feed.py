"""One reader per tensor-parallel group: the group's first rank loads a micro-batch, the others receive it.

Pipeline stages after the first read the same packs without their tiles. Text and tiles travel as they are stored
(integers and bytes); normalisation happens on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.data.types import Batch

_TENSORS = ("input_ids", "labels", "loss_weights", "position_ticks", "tiles")


class Loader(Protocol):
    """What a feed reads from."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over this data-parallel rank's packs without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed."""
        ...


class DataFeed:
    """Micro-batches for every rank of a tensor-parallel group."""

    def __init__(self, loader: Loader | None, group: dist.ProcessGroup, device: torch.device) -> None:
        """Take the loader on the group's first rank, None on the others."""
        assert (loader is not None) == (group.rank() == 0)
        self.loader = loader
        self._batches = iter(loader) if loader is not None else None
        self._group = group
        self._source = dist.get_process_group_ranks(group)[0]
        self._device = device

    def next(self) -> Batch:
        """Return the next micro-batch, the same on every rank of the group."""
        batch = next(self._batches) if self._batches is not None else None
        if self._group.size() == 1:
            assert batch is not None
            return batch
        return self._broadcast(batch)

    def _broadcast(self, batch: Batch | None) -> Batch:
        header: list[Any] = [None]
        if batch is not None:
            shapes = {name: (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) for name in _TENSORS}
            header = [(shapes, batch.seqlens, batch.num_tiles, batch.sources)]
        dist.broadcast_object_list(header, src=self._source, group=self._group, device=self._device)
        shapes, seqlens, num_tiles, sources = header[0]
        tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes.items():
            if batch is not None:
                tensor = getattr(batch, name).to(self._device).contiguous()
            else:
                tensor = torch.empty(shape, dtype=dtype, device=self._device)
            if tensor.numel():
                dist.broadcast(tensor, src=self._source, group=self._group)
            tensors[name] = tensor
        return Batch(**tensors, seqlens=seqlens, num_tiles=num_tiles, sources=sources)
