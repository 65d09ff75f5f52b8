"""How much each supervised token of a document counts."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_v2pe.data.types import IGNORE_INDEX


def loss_weights(labels: Tensor, reduction: str) -> Tensor:
    """Return float32 [L], 0 where nothing is supervised.

    With x supervised tokens in the document each weighs 1 (`token`), 1 / x (`sample`) or 1 / sqrt(x) (`square`), so
    that the document weighs x, 1 or sqrt(x).

    Args:
        labels: [L], -100 for nothing.
        reduction: `token`, `sample` or `square`.
    """
    supervised = labels != IGNORE_INDEX
    count = int(supervised.sum())
    exponent = {"token": 0.0, "sample": -1.0, "square": -0.5}[reduction]
    weight = float(count) ** exponent if count else 0.0
    return torch.where(supervised, weight, 0.0).to(torch.float32)
