"""Documents to a micro-batch: tiles read, everything put one after the other; runs in the loader's worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from megatron_v2pe.data.collate import collate
from megatron_v2pe.data.image_tiles import TileCache, read_tiles
from megatron_v2pe.data.types import Batch, Document, Picture, SampleId
from megatron_v2pe.errors import DataError


@dataclass(frozen=True)
class ReadPack:
    """A micro-batch, and the documents it had to do without."""

    batch: Batch
    unreadable: tuple[tuple[SampleId, str], ...]


@dataclass(frozen=True)
class PackReader(Dataset[ReadPack]):
    """Reads the tiles of packs."""

    tile_size: int
    mean: Sequence[float]
    reduction: str
    cache: TileCache = field(default_factory=TileCache, compare=False)

    def __getitem__(self, documents: Sequence[Document]) -> ReadPack:
        """Read one pack of documents."""
        return self.read(documents)

    def read(
        self,
        documents: Sequence[Document],
        unreadable: Sequence[tuple[SampleId, str]] = (),
        open_picture: Callable[[Picture], Image.Image] | None = None,
    ) -> ReadPack:
        """Read one pack; a document whose images turn out damaged is left out and reported.

        Args:
            documents: in order.
            unreadable: those already found to be so.
            open_picture: as of `read_tiles`.
        """
        kept, lost, parts = list[Document](), list(unreadable), list[Tensor]()
        total = sum(document.num_tiles for document in documents)
        tiles, first = torch.empty(total, self.tile_size, self.tile_size, 3, dtype=torch.uint8), 0
        for document in documents:
            part = tiles[first : first + document.num_tiles]
            first += document.num_tiles
            try:
                read_tiles(document.pictures, self.tile_size, self.mean, document.key, open_picture, part, self.cache)
            except DataError as error:
                lost.append((document.source, str(error)))
            else:
                kept.append(document)
                parts.append(part)
        if len(kept) < len(documents):
            tiles = torch.cat([tiles[:0], *parts])
        return ReadPack(collate(kept, tiles, self.reduction), tuple(lost))
