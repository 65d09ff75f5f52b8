"""From the documents of a pack to a micro-batch: weights of the loss, labels shifted, everything joined, tiles read.

Reading (`PackReader`) happens in the loader's worker processes. Nothing is padded here: what a parallel layout pads is
added when a pack is cut (`models/micro_batch.py`), so that packs are the same under every layout.

Example, two documents under `square`; `.` is a token nothing is learned from:

    labels in place          . . a b c c |  . . . d      label t is token t
    weights in place         0 0 ½ ½ ½ ½ |  0 0 0 1      1 / sqrt(4), 1 / sqrt(1)
    labels of the batch      . a b c c . |  . . d .      label t is the token after t, never another document's
    weights of the batch     0 ½ ½ ½ ½ 0 |  0 0 1 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from megatron_v2pe.data.image_tiles import TileCache, read_tiles
from megatron_v2pe.data.loss_weights import LOSS_REDUCTIONS, DocumentNumbers
from megatron_v2pe.data.types import IGNORE_INDEX, Batch, Picture, SampleId, TrainingDocument
from megatron_v2pe.errors import DataError
from megatron_v2pe.v2pe.position_ids import Ticks


def loss_weights(labels: Tensor, reduction: str) -> Tensor:
    """Return how much each token of a document counts: float32 [L], 0 where nothing is learned.

    Args:
        labels: [L], -100 where nothing is learned.
        reduction: a value of `data.loss_reduction`; `data/loss_weights.py` has their formulas.
    """
    supervised = labels != IGNORE_INDEX
    numbers = DocumentNumbers(supervised=int(supervised.sum()), tokens=len(labels))
    weight = LOSS_REDUCTIONS.get(reduction)(numbers) if numbers.supervised else 0.0
    return torch.where(supervised, weight, 0.0).to(torch.float32)


def collate(
    documents: Sequence[TrainingDocument],
    tiles: Tensor,
    reduction: str,
    denominator: int,
    unreadable: Sequence[tuple[SampleId, str]] = (),
) -> Batch:
    """Join documents to a micro-batch.

    Args:
        documents: in order; none gives a micro-batch without tokens.
        tiles: uint8 [T, H, W, 3], of all documents in order.
        reduction: a value of `data.loss_reduction`, see `loss_weights`.
        denominator: ticks of one position, the same for all documents of a run.
        unreadable: samples of the pack that are left out, and why.
    """
    weights = [loss_weights(document.labels, reduction) for document in documents]
    return Batch(
        input_ids=_joined([document.input_ids for document in documents], torch.int64),
        labels=_joined([_shifted(document.labels, IGNORE_INDEX) for document in documents], torch.int64),
        loss_weights=_joined([_shifted(of_document, 0.0) for of_document in weights], torch.float32),
        position_ticks=Ticks.joined([document.position_ticks for document in documents], denominator),
        seqlens=tuple(document.num_tokens for document in documents),
        tiles=tiles,
        num_tiles=tuple(count for document in documents for _, count in document.images),
        sources=tuple(document.source for document in documents),
        unreadable=tuple(unreadable),
        document_tiles=tuple(document.num_tiles for document in documents),
        images=tuple(tuple(dict.fromkeys(picture.path for picture in one.pictures)) for one in documents),
    )


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Join the parts of all documents; no documents give an empty tensor."""
    return torch.cat([torch.empty(0, dtype=dtype), *parts])


def _shifted(values: Tensor, fill: float) -> Tensor:
    """Move values one token to the left: what token t carries is now about token t + 1."""
    return torch.cat([values[1:], values.new_full((1,), fill)])


@dataclass(frozen=True)
class PackReader(Dataset[Batch]):
    """Reads the tiles of packs, and makes micro-batches of them."""

    tile_size: int
    """Side of a tile in pixels."""
    mean: Sequence[float]
    """Mean colour of the normalisation, for operations that pad."""
    reduction: str
    """How tokens are weighted, see `loss_weights`."""
    denominator: int
    """Ticks of one position, the same for all documents of a run."""
    cache: TileCache = field(default_factory=TileCache, compare=False)

    def __getitem__(self, documents: Sequence[TrainingDocument]) -> Batch:
        """Read one pack of documents."""
        return self.read(documents)

    def read(
        self,
        documents: Sequence[TrainingDocument],
        unreadable: Sequence[tuple[SampleId, str]] = (),
        open_picture: Callable[[Picture], Image.Image] | None = None,
    ) -> Batch:
        """Read one pack; a document whose images turn out damaged is left out and reported.

        Args:
            documents: in order.
            unreadable: samples of the pack that are left out already, and why.
            open_picture: reads an image other than from its path, see `read_tiles`.
        """
        kept, lost, parts = list[TrainingDocument](), list(unreadable), list[Tensor]()
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
        return collate(kept, tiles, self.reduction, self.denominator, lost)
