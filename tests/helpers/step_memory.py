"""One training step of a small InternVL2, its memory counted tensor by tensor; runs inside a `WorkerPool`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megatron_v2pe.models.lora import put_adapters
from megatron_v2pe.models.lora_plan import LowRankPlan
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.measuring.tensor_memory import TensorMemory


@dataclass(frozen=True)
class Measured:
    """What one rank saw."""

    parameters: int
    learning: int
    """Parameters with gradients."""
    kept: int
    """Bytes of tensors made in the step that were alive when the head began; on earlier stages, after the decoder."""
    peak: int
    """Bytes at the worst moment of forward and backward."""


def run(
    hf_config: dict[str, Any],
    layout: ParallelConfig,
    options: ModelOptions,
    tokens: int,
    tiles: int,
    supervised: int,
    micro_batches: int = 1,
    frozen: dict[str, bool] | None = None,
    adapters: LowRankPlan | None = None,
) -> Measured:
    """Measure a step of packs of one document each, which begins with its images and ends with what is learned."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import freeze, wrap
    from megatron_v2pe.train.step import forward_backward

    policy, image_token = StridePolicy("default"), hf_config["llm_config"]["vocab_size"] - 1
    adapt = None if adapters is None else partial(put_adapters, adapters)
    with built(hf_config, layout, options, policy, image_token, adapt) as model:
        freeze(model, **{"backbone": False, "llm": False, "projector": False, **(frozen or {})})
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped: Any = wrap(model, layout, groups, torch.device("cpu"))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        config = model.internvl
        images = tiles * config.tokens_per_tile
        ids = torch.randint(0, image_token, (tokens,), generator=torch.Generator().manual_seed(0))
        ids[:images] = image_token
        labels = torch.full((tokens,), -100)
        labels[tokens - supervised :] = 3
        memory, marks = TensorMemory(), [0]
        decode = model.language_model.decode

        def marked(*args: Any) -> Any:
            hidden = decode(*args)
            marks.append(memory.alive)
            return hidden

        model.language_model.decode = marked
        mine = model.coordinates.tiles(tiles) if model.pre_process else range(0)
        wrapped.train()
        wrapped.zero_grad_buffer()
        size, denominator = config.tile_size, policy.denominator(config.tokens_per_tile)

        def batches() -> Iterator[MicroBatch]:
            for _ in range(micro_batches):
                pack = TensorPack(
                    ids,
                    Ticks(torch.arange(tokens) * denominator, denominator),
                    [tokens],
                    labels=labels,
                    loss_weights=torch.ones(tokens),
                    num_tiles=[tiles],
                    tiles=torch.zeros(len(mine), 3, size, size, dtype=options.params_dtype) if mine else None,
                )
                yield PackCutter(model.coordinates, image_token, config.tokens_per_tile, model.pre_process).cut(pack)

        with memory:
            forward_backward(wrapped, batches(), micro_batches, float(supervised))
        counts = (sum(parameter.numel() for parameter in part) for part in (model.parameters(), learning))
        return Measured(*counts, kept=max(marks), peak=memory.peak)
