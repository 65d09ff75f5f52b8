"""Greedy generation on one process: prompt in, token ids out, V2PE positions continuing by 1 after the prompt.

Every step runs the whole sequence again; images are encoded once. Rotary scaling is decided from the prompt's length,
once. (Caching keys and values, sampling and parallel layouts build on this interface.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_v2pe.models.micro_batch import cut_pack
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.v2pe.position_ids import continue_positions


@dataclass(frozen=True)
class Generated:
    """One answer."""

    token_ids: list[int]
    """New tokens, the stop token included where one was produced."""
    logits: Tensor
    """[steps, vocab_size]: what each token was chosen from."""


@torch.no_grad()
def generate_greedy(
    model: InternVLModel,
    input_ids: Tensor,
    position_ticks: Tensor,
    pixel_values: Tensor | None,
    max_new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Generated:
    """Continue one prompt by its most likely tokens.

    Args:
        model: the whole model on this process, in evaluation mode.
        input_ids: int64 [L].
        position_ticks: int64 [L].
        pixel_values: [tiles, 3, size, size] or None.
        max_new_tokens: most tokens to add.
        stop_ids: tokens that end the answer.
    """
    assert model.pre_process and model.post_process, "greedy generation runs on one pipeline stage"
    num_tiles = 0 if pixel_values is None else pixel_values.shape[0]
    features = model.encode_images(pixel_values) if pixel_values is not None and num_tiles else None
    last_tick = int(position_ticks[-1])
    chosen: list[int] = []
    steps: list[Tensor] = []
    while len(chosen) < max_new_tokens and not (chosen and chosen[-1] in stop_ids):
        ids = torch.cat([input_ids, input_ids.new_tensor(chosen)])
        ticks = torch.cat([position_ticks, continue_positions(last_tick, len(chosen), model.rotary.denominator)])
        batch = cut_pack(
            ids,
            ticks.to(ids.device),
            [len(ids)],
            model.placement,
            image_token_id=model.image_token_id,
            num_tiles=num_tiles,
            tokens_per_tile=model.internvl.tokens_per_tile,
        )
        logits = model.logits_of_last(replace(batch, last_ticks=(last_tick,)), features)
        steps.append(logits)
        chosen.append(int(logits.argmax()))
    return Generated(chosen, torch.stack(steps) if steps else torch.empty(0))
