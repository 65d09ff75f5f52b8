"""Documents one after the other as a micro-batch: labels and weights shifted inside each document, padding last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_v2pe.data.loss_weights import loss_weights
from megatron_v2pe.data.types import IGNORE_INDEX, Batch, Document

PADDING_ID = 0


def collate(documents: Sequence[Document], tiles: Tensor, reduction: str, pad_multiple: int, denominator: int) -> Batch:
    """Pack documents.

    Args:
        documents: in order; none gives a micro-batch of padding alone.
        tiles: uint8 [T, H, W, 3], of all documents in order.
        reduction: `token`, `sample` or `square`.
        pad_multiple: the length is brought to a multiple of this by a document of padding.
        denominator: the position lattice's.
    """
    ids = [document.input_ids for document in documents]
    ticks = [document.position_ticks for document in documents]
    labels = [_shift(document.labels, IGNORE_INDEX) for document in documents]
    weights = [_shift(loss_weights(document.labels, reduction), 0.0) for document in documents]
    seqlens = [len(part) for part in ids]
    total = sum(seqlens)
    if padding := max(-(-total // pad_multiple), 1) * pad_multiple - total:
        ids.append(torch.full((padding,), PADDING_ID))
        ticks.append(torch.arange(padding) * denominator)
        labels.append(torch.full((padding,), IGNORE_INDEX))
        weights.append(torch.zeros(padding))
        seqlens.append(padding)
    return Batch(
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        loss_weights=torch.cat(weights),
        position_ticks=torch.cat(ticks),
        seqlens=tuple(seqlens),
        tiles=tiles,
        num_tiles=tuple(count for document in documents for _, count in document.images),
        sources=tuple(document.source for document in documents),
    )


def _shift(values: Tensor, fill: float) -> Tensor:
    """Move values one token to the left: what token t carries is now about token t + 1."""
    return torch.cat([values[1:], values.new_full((1,), fill)])
