"""What the values of `data.loss_reduction` mean: how much each supervised token of a document counts in the loss.

A document has x supervised tokens. A value is one function, which returns the weight of each of them:

| value | weight of a token | weight of the document |
|---|---|---|
| `token` | 1 | x |
| `sample` | 1 / x | 1 |
| `square` | 1 / sqrt(x) | sqrt(x) |

The loss of a step is the sum of weight times cross-entropy over all supervised tokens of all ranks and packs, divided
by the sum of the weights (`train/data_feed.Totals`, `train/step.py`). So the scale of the weights does not matter.

A plug-in (`base/plugins.py`) adds a value by a file `loss_weights.py` in its folder:

    @LOSS_REDUCTIONS.register("log")
    def log(document: DocumentNumbers) -> float:
        return math.log1p(document.supervised) / document.supervised
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_v2pe.base.plugins import Registry


@dataclass(frozen=True)
class DocumentNumbers:
    """What a weighting may depend on."""

    supervised: int
    """Tokens of the document that are learned, 1 or more: a document without any weighs nothing."""
    tokens: int
    """All tokens of the document."""


TokenWeight = Callable[[DocumentNumbers], float]
"""Returns the weight of each supervised token of a document: a finite number above 0."""
LOSS_REDUCTIONS: Registry[TokenWeight] = Registry("data.loss_reduction", __name__, "loss_weights")
"""Weightings by the name that `data.loss_reduction` takes."""


@LOSS_REDUCTIONS.register("token")
def per_token(document: DocumentNumbers) -> float:
    """Return 1: every token counts alike."""
    return 1.0


@LOSS_REDUCTIONS.register("sample")
def per_sample(document: DocumentNumbers) -> float:
    """Return 1 / x: every document counts alike."""
    return float(document.supervised) ** -1.0


@LOSS_REDUCTIONS.register("square")
def by_square_root(document: DocumentNumbers) -> float:
    """Return 1 / sqrt(x): a document counts as much as the root of its supervised tokens."""
    return float(document.supervised) ** -0.5
