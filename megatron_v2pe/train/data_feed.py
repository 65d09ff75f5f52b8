"""One reader per copy of the model: its first rank loads a micro-batch, the others receive it.

Text goes to every tensor-, context- and pipeline-parallel rank; tiles go to the ranks of the first stage, to each those
it encodes. All travel as they are stored (integers and bytes); normalisation happens on the device.
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
from megatron_v2pe.parallel.placement import Placement

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
        placement: Placement,
        device: torch.device,
        max_skipped_samples: int,
    ) -> None:
        """Set up the feed; every rank of `model_group` calls this.

        Args:
            loader: on the group's first rank, None on the others.
            model_group: all ranks that share a copy of the model.
            tile_group: the first stage's tensor x context parallel ranks, the reader first among them; None on ranks
                of other stages.
            placement: where this rank stands in it.
            device: where received tensors go.
            max_skipped_samples: bad samples allowed over all ranks.
        """
        assert (loader is not None) == (model_group.rank() == 0)
        self.loader = loader
        self._batches = iter(loader) if loader is not None else None
        self._model_group, self._tile_group, self._placement = model_group, tile_group, placement
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
        """Return the next micro-batch: the whole text, and the tiles this rank encodes."""
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
            name: self._share(getattr(batch, name, None), shape, dtype) for name, (shape, dtype) in shapes.items()
        }
        tiles = self._deal_out(None if batch is None else batch.tiles, tile_shape)
        return Batch(**tensors, tiles=tiles, seqlens=seqlens, num_tiles=num_tiles, sources=sources)

    def _share(self, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if tensor is None:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
        tensor = tensor.to(self._device).contiguous()
        if tensor.numel():
            dist.broadcast(tensor, src=self._source, group=self._model_group)
        return tensor

    def _deal_out(self, tiles: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Send every rank of the first stage the tiles it encodes, and no others."""
        group, count = self._tile_group, shape[0]
        if group is None:
            return torch.empty((0, *shape[1:]), dtype=torch.uint8, device=self._device)
        mine = self._placement.tiles(count)
        if tiles is None:
            received = torch.empty((len(mine), *shape[1:]), dtype=torch.uint8, device=self._device)
            if len(mine):
                dist.recv(received, src=self._source, group=group)
            return received
        for member, rank in enumerate(dist.get_process_group_ranks(group)):
            theirs = self._placement.neighbour(member).tiles(count)
            if member and len(theirs):
                dist.send(tiles[theirs.start : theirs.stop].to(self._device).contiguous(), dst=rank, group=group)
        return tiles[mine.start : mine.stop].to(self._device)
