"""Floating-point operations of a training step, counted once: what the model needs, not what a run does.

A multiplication with its addition counts as two. Forward and backward of matrix products and attention count; norms,
activations and embeddings do not, nor does anything that is recomputed. A causal mask halves attention, document by
document: half of 4 x hidden x length^2 forward. The head counts on supervised tokens only. A frozen part has no
gradients of its weights, and below the first part that learns there is no backward pass at all. Adapters count as
what they are, two narrow products beside a linear, forward and backward.

The counts do not depend on the layout: work that all tensor-parallel ranks repeat, or padding, is not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.config_sections import share
from megatron_v2pe.parallel.config import ParallelConfig

if TYPE_CHECKING:  # an estimate needs no PyTorch
    from megatron_v2pe.models.lora_plan import LowRankPlan


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
    adapters: LowRankPlan | None = None
    """Adapters on parts that do not learn as a whole."""

    def adapted(self, part: str) -> bool:
        """Tell whether linears of a part (`vision_model`) have adapters."""
        return self.adapters is not None and part in self.adapters.parts

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
        factors = _factors(model, learning)
        return cls(
            per_token=2 * passes * llm.num_layers * layer + 6 * factors["language_model"],
            per_square=3 * 2 * llm.query_size * llm.num_layers,
            per_tile=_tile(model, learning),
            per_supervised=2 * (3 if learning.tables else passes) * width * llm.vocab_size,
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
    factors = _factors(model, learning)
    total += 6 * tokens * factors["vision_model"] + 6 * model.tokens_per_tile * factors["vision_projection"]
    below = learning.backbone or learning.adapted("vision_model")  # whether anything before learns
    run = model.select_layer % (vision.num_layers + 1)
    for learns in learning.tower_layers(vision.num_layers)[:run]:
        below = below or learns  # its norms come before its products
        total += products * (1 + below + learns) + attention * (3 if below else 1)
    shuffled = width * round(1 / model.downsample_ratio) ** 2
    projector = 2 * model.tokens_per_tile * (shuffled + model.llm.hidden_size) * model.llm.hidden_size
    below = below or learning.projector or learning.adapted("vision_projection")
    return total + projector * (1 + below + learning.projector)


def _factors(model: InternVLConfig, learning: Learning) -> dict[str, int]:
    """Return the numbers of the adapters' factors, by part of the model; a token is multiplied with each of them."""
    found: dict[str, int] = {"language_model": 0, "vision_model": 0, "vision_projection": 0}
    if learning.adapters is not None:
        for name, pieces in learning.adapters.pieces.items():
            part = name.split(".")[0]
            outputs, inputs = linear_shape(model, ParallelConfig(), name)
            rank = learning.adapters.settings[part].rank
            found[part] += sum(rank * (inputs + piece.rows_of(outputs)) for piece in pieces)
    return found


def linear_shape(model: InternVLConfig, layout: ParallelConfig, name: str) -> tuple[int, int]:
    """Return the outputs and inputs that a tensor-parallel rank holds of a linear.

    Args:
        model: its sizes.
        layout: degrees of parallelism.
        name: of the linear in the whole model, `language_model.decoder.layers.0.mlp.linear_fc1`.
    """
    part, kind = name.split(".")[0], name.split(".")[-1]
    degree = layout.tensor_model_parallel_size
    if part == "language_model":
        llm = model.llm
        groups, wide = share(llm.num_query_groups, degree), share(llm.ffn_hidden_size, degree)
        queries = groups * (llm.num_attention_heads // llm.num_query_groups) * llm.head_dim
        width, joint, gated = llm.hidden_size, queries + 2 * groups * llm.head_dim, 2
    else:
        degree = 1 if layout.vision_parallel == "replicated" else degree
        vision, width, gated = model.vision, model.vision.hidden_size, 1
        queries = share(vision.num_attention_heads, degree) * vision.head_dim
        joint, wide = 3 * queries, share(vision.ffn_hidden_size, degree)
    if part == "vision_projection":
        shuffled = width * round(1 / model.downsample_ratio) ** 2
        width, wide = model.llm.hidden_size, share(model.llm.hidden_size, degree)
        return (wide, shuffled) if kind == "linear_fc1" else (width, wide)
    return {
        "linear_qkv": (joint, width),
        "linear_proj": (width, queries),
        "linear_fc1": (gated * wide, width),
        "linear_fc2": (width, wide),
    }[kind]
