"""Floating-point operations of a training step, counted once: what the model needs, not what a run does.

A multiplication with its addition counts as two. Forward and backward of matrix products and attention count; norms,
activations and embeddings do not, nor does anything that is recomputed. A causal mask halves attention, document by
document: half of 4 x hidden x length^2 forward. The head counts on supervised tokens only. A frozen part has no
gradients of its weights, and below the first part that learns there is no backward pass at all.

The counts do not depend on the layout: work that all tensor-parallel ranks repeat, or padding, is not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_v2pe.models.config import InternVLConfig


@dataclass(frozen=True)
class Learning:
    """Which parts of the model learn; the fields are those of `train.ddp.freeze`."""

    backbone: bool = True
    """Whether the whole tower learns."""
    llm: bool = True
    projector: bool = True
    unfreeze_vit_layers: int = 0
    """Without `backbone`: tower layers from this index on learn, negative from the end; 0: none."""
    tables: bool = False
    """Without `llm`: the vocabulary's tables have gradients and state, though the rows of new tokens alone learn."""

    def tower_layers(self, num_layers: int) -> list[bool]:
        """Tell of each layer of the tower whether it learns."""
        if self.backbone or not self.unfreeze_vit_layers:
            return [self.backbone] * num_layers
        chosen = range(num_layers)[self.unfreeze_vit_layers :]
        return [number in chosen for number in range(num_layers)]


@dataclass(frozen=True)
class StepCost:
    """What a step costs, linear in what its packs hold; floating-point operations, forward and backward."""

    per_token: float
    """Operations of the matrix products of the decoder's layers, per token."""
    per_square: float
    """Operations of causal attention, per squared token of a document's length."""
    per_tile: float
    """Operations of tower and projector, per tile."""
    per_supervised: float
    """Operations of the projection to the vocabulary, per supervised token."""

    @classmethod
    def of(cls, model: InternVLConfig, learning: Learning | None = None) -> StepCost:
        """Count for a model.

        Args:
            model: its sizes.
            learning: which parts learn; all by default.
        """
        learning, llm = learning or Learning(), model.llm
        width = llm.hidden_size
        layer = width * (llm.qkv_size + llm.query_size + 3 * llm.ffn_hidden_size)
        passes = 3 if learning.llm else 2  # without gradients of weights; those of hidden states reach what learns
        return cls(
            per_token=2 * passes * llm.num_layers * layer,
            per_square=3 * 2 * llm.query_size * llm.num_layers,
            per_tile=_tile(model, learning),
            per_supervised=2 * passes * width * llm.vocab_size,
        )

    def flop(self, tokens: int, squares: int, tiles: int, supervised: int) -> float:
        """Return the operations of packs.

        Args:
            tokens: of all documents, without padding.
            squares: sum of the squared lengths of documents.
            tiles: of all images.
            supervised: tokens whose successor is learned.
        """
        return (
            self.per_token * tokens
            + self.per_square * squares
            + self.per_tile * tiles
            + self.per_supervised * supervised
        )


def _tile(model: InternVLConfig, learning: Learning) -> float:
    """Return the operations of tower and projector over one tile."""
    vision, width = model.vision, model.vision.hidden_size
    patches = (model.tile_size // vision.patch_size) ** 2
    tokens = patches + 1
    embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * width
    total = embedding * (2 if learning.backbone else 1)  # pixels have no gradient
    products = 2 * tokens * (4 * width * width + 2 * width * vision.ffn_hidden_size)
    attention = 4 * tokens * tokens * width
    below = learning.backbone  # whether anything before learns
    run = model.select_layer % (vision.num_layers + 1)
    for learns in learning.tower_layers(vision.num_layers)[:run]:
        below = below or learns  # its norms come before its products
        total += products * (1 + below + learns) + attention * (3 if below else 1)
    shuffled = width * round(1 / model.downsample_ratio) ** 2
    projector = 2 * model.tokens_per_tile * (shuffled + model.llm.hidden_size) * model.llm.hidden_size
    below = below or learning.projector
    return total + projector * (1 + below + learning.projector)
