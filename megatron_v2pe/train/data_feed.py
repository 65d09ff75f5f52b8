"""One reader per copy of the model: its first rank loads a micro-batch, the others receive it.

Text goes to every tensor- and pipeline-parallel rank, tiles to those of the first stage. All travel as they are stored
(integers and bytes); normalisation happens on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_v2pe.data.types import Batch
from megatron_v2pe.errors import DataError

_TEXT = ("input_ids", "labels", "loss_weights", "position_ticks")


class Loader(Protocol):
    """What a feed reads from."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over this data-parallel rank's packs without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has been consumed."""
        ...

    @property
    def unusable(self) -> int:
        """Samples every rank refused."""
        ...

    @property
    def unreadable(self) -> Counter[str]:
        """Samples this rank alone had to do without, by cause."""
        ...


class DataFeed:
    """Micro-batches for every rank that works on the same packs."""

    def __init__(
        self,
        loader: Loader | None,
        model_group: dist.ProcessGroup,
        tile_group: dist.ProcessGroup | None,
        device: torch.device,
        max_skipped_samples: int,
    ) -> None:
        """Set up the feed; every rank of `model_group` calls this.

        Args:
            loader: on the group's first rank, None on the others.
            model_group: all ranks that share a copy of the model.
            tile_group: those of them that need tiles, the first rank among them; None on a rank that needs none.
            device: where received tensors go.
            max_skipped_samples: bad samples allowed over all ranks.
        """
        assert (loader is not None) == (model_group.rank() == 0)
        self.loader = loader
        self._batches = iter(loader) if loader is not None else None
        self._model_group, self._tile_group = model_group, tile_group
        self._source = dist.get_process_group_ranks(model_group)[0]
        self._device = device
        self._limit = max_skipped_samples
        self._committed = loader.state_dict() if loader is not None else {}

    def step(self, count: int) -> list[Batch]:
        """Return the micro-batches of a step; every rank of the world calls this.

        Raises:
            DataError: some rank met bad data, or all together too much of it; raised on every rank.
        """
        batches: list[Batch] = []
        problem = None
        try:
            batches = [self._next() for _ in range(count)]
        except DataError as error:
            problem = str(error)
        self._agree(problem)
        return batches

    def commit(self) -> None:
        """Take note that the step is done: what a checkpoint counts as consumed."""
        if self.loader is not None:
            self._committed = self.loader.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return what finished steps have consumed, with the bad samples of all ranks; every rank calls this."""
        others = Counter[str]() if self.loader is None or dist.get_rank() == 0 else self.loader.unreadable
        counters: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counters, others)
        skipped = sum(counters, Counter(self._committed.get("skipped", {})))
        return {**self._committed, "skipped": dict(skipped)}

    def _agree(self, problem: str | None) -> None:
        unreadable = 0 if self.loader is None else sum(self.loader.unreadable.values())
        unusable = self.loader.unusable if self.loader is not None and dist.get_rank() == 0 else 0
        counts = torch.tensor([int(problem is not None), unreadable + unusable], device=self._device)
        dist.all_reduce(counts)
        failed, skipped = counts.tolist()
        if failed:
            problems: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem)
            raise DataError(next(text for text in problems if text is not None))
        if skipped > self._limit:
            raise DataError(
                f"{skipped} bad samples over all ranks, data.max_skipped_samples allows {self._limit}; "
                "they are named in the output of the ranks that met them"
            )

    def _next(self) -> Batch:
        """Return the next micro-batch, the same on every rank; without tiles on those that need none."""
        batch, problem = None, None
        if self._batches is not None:
            try:
                batch = next(self._batches)
            except DataError as error:
                problem = str(error)
        header: list[Any] = [problem]
        if batch is not None:
            shapes = {name: (tuple(getattr(batch, name).shape), getattr(batch, name).dtype) for name in _TEXT}
            header = [(shapes, tuple(batch.tiles.shape), batch.seqlens, batch.num_tiles, batch.sources)]
        if self._model_group.size() > 1:
            dist.broadcast_object_list(header, src=self._source, group=self._model_group, device=self._device)
        if isinstance(header[0], str):
            raise DataError(header[0])
        if self._model_group.size() == 1:
            assert batch is not None
            return batch
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
