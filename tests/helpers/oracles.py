"""Our decoder with weights handed in by HF name, to be held against other libraries (towers: `towers.py`).

The other library builds a small model; its weights arrive here under the names of an InternVL2 checkpoint. Runs inside
a `WorkerPool`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.golden import read_checkpoint
from helpers.hf_names import to_full_state
from megatron_v2pe.models.micro_batch import PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import gather_full, load_full, sharded_pieces

NO_IMAGES = -1
"""An id of image tokens that no text holds."""


@dataclass(frozen=True)
class Outcome:
    """What a part of the model gave."""

    output: Tensor
    gradients: dict[str, Tensor]
    """Gradients of half the sum of the squared outputs, by checkpoint key."""


def checkpoint_keys(checkpoint: str) -> list[str]:
    """Return the keys under which a model of an HF folder's architecture stores its parameters (local layer spec)."""
    hf_config, _ = read_checkpoint(checkpoint)
    with built(hf_config, ParallelConfig(), ModelOptions(), StridePolicy("default"), NO_IMAGES) as model:
        return sorted({piece.key for piece in sharded_pieces(model, lambda parameter: parameter.detach())})


def decoder(checkpoint: str, weights: dict[str, Tensor], ids: Tensor, seqlens: Sequence[int]) -> Outcome:
    """Run the language model over a pack of texts.

    Args:
        checkpoint: HF folder, gives the architecture.
        weights: every tensor of the language model, by HF name.
        ids: int64 [S].
        seqlens: document lengths; the positions of each are 0, 1, 2, ...

    Returns:
        Logits [S, vocab_size].
    """
    with _with_weights(checkpoint, weights, "language_model.") as (model, policy):
        denominator = policy.denominator(model.internvl.tokens_per_tile)
        ticks = Ticks(torch.cat([torch.arange(length) * denominator for length in seqlens]), denominator)
        cutter = PackCutter(model.coordinates, NO_IMAGES, model.internvl.tokens_per_tile)
        batch = cutter.cut(TensorPack(ids, ticks, seqlens))
        return _outcome(model, model(batch))


@contextmanager
def _with_weights(checkpoint: str, weights: dict[str, Tensor], prefix: str) -> Iterator[tuple[Any, StridePolicy]]:
    """Build the model with the checkpoint's weights, those of one part replaced."""
    hf_config, state = read_checkpoint(checkpoint)
    part = {name for name in state if name.startswith(prefix)}
    assert weights.keys() == part, f"names that only one side has: {sorted(weights.keys() ^ part)}"
    policy = StridePolicy("default")
    with built(hf_config, ParallelConfig(), ModelOptions(), policy, NO_IMAGES) as model:
        load_full(model, to_full_state({**state, **weights}, model.internvl.vision.num_attention_heads))
        yield model, policy


def _outcome(model: Any, output: Tensor) -> Outcome:
    (output.square().sum() / 2).backward()
    return Outcome(output.detach(), gather_full(model, lambda parameter: parameter.grad))


def layers_run(checkpoint: str, select_layers: Sequence[int]) -> list[tuple[int, set[int]]]:
    """For each `select_layer` return how many layers of the tower run, and the numbers of those it calls unused."""
    hf_config, _ = read_checkpoint(checkpoint)
    found: list[tuple[int, set[int]]] = []
    for select_layer in select_layers:
        changed = {**hf_config, "select_layer": select_layer}
        with built(changed, ParallelConfig(), ModelOptions(), StridePolicy("default"), NO_IMAGES) as model:
            vision = model.vision_model
            unused = {id(parameter) for parameter in vision.unused_parameters()}
            layers = [{id(parameter) for parameter in layer.parameters()} for layer in vision.decoder.layers]
            assert unused <= set().union(*layers)
            found.append((vision.num_layers_run, {i for i, layer in enumerate(layers) if layer <= unused}))
    return found
