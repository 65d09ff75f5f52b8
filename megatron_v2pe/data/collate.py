"""Documents one after the other as a micro-batch; labels and weights shifted inside each document."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.data.loss_weights import loss_weights
from megatron_v2pe.data.types import IGNORE_INDEX, Batch, Document


def collate(documents: Sequence[Document], tiles: Tensor, reduction: str) -> Batch:
    """Pack documents.

    What a parallel layout pads is not added here: packs are the same whatever the layout.

    Args:
        documents: in order; none gives a micro-batch without tokens.
        tiles: uint8 [T, H, W, 3], of all documents in order.
        reduction: `token`, `sample` or `square`.
    """
    nothing = torch.empty(0, dtype=torch.int64)
    return Batch(
        input_ids=torch.cat([nothing, *(document.input_ids for document in documents)]),
        labels=torch.cat([nothing, *(_shift(document.labels, IGNORE_INDEX) for document in documents)]),
        loss_weights=torch.cat(
            [nothing.float(), *(_shift(loss_weights(document.labels, reduction), 0.0) for document in documents)]
        ),
        position_ticks=torch.cat([nothing, *(document.position_ticks for document in documents)]),
        seqlens=tuple(document.num_tokens for document in documents),
        tiles=tiles,
        num_tiles=tuple(count for document in documents for _, count in document.images),
        sources=tuple(document.source for document in documents),
    )


def _shift(values: Tensor, fill: float) -> Tensor:
    """Move values one token to the left: what token t carries is now about token t + 1."""
    return torch.cat([values[1:], values.new_full((1,), fill)])
