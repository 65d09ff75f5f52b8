"""One training step of a small InternVL2 on synthetic documents, in any layout, measured; runs inside a `WorkerPool`.

Processes stand on cores of their own, so that two processes with a core each can be held against one with two.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.micro_batch import MicroBatch, PackCutter, TensorPack
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.train.config import AdamWConfig
from megatron_v2pe.v2pe.position_ids import Ticks, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.measuring.tensor_memory import TensorMemory
from megatron_v2pe.workshop.synthetic.checkpoint import internvl2_2b_config

POLICY = StridePolicy("v2pe_fix", 64)


@dataclass(frozen=True)
class Shape:
    """Sizes of a small InternVL2; heads are 64 wide, tiles 448 pixels, 256 tokens each."""

    layers: int
    heads: int
    groups: int
    vocab: int = 8192
    vision_layers: int = 2
    vision_heads: int = 1

    def __str__(self) -> str:
        """Return the sizes in words."""
        return (
            f"{self.layers} layers, {self.heads} heads of 64, {self.groups} query groups, vocabulary {self.vocab}; "
            f"tower {self.vision_layers} layers, {self.vision_heads} heads of 64"
        )

    def hf_config(self) -> dict[str, Any]:
        """Return the `config.json`."""
        config = internvl2_2b_config()
        hidden, vision = 64 * self.heads, 64 * self.vision_heads
        config["llm_config"] |= {
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocab,
        }
        config["vision_config"] |= {
            "hidden_size": vision,
            "intermediate_size": 4 * vision,
            "num_attention_heads": self.vision_heads,
            "num_hidden_layers": self.vision_layers,
        }
        return config


@dataclass(frozen=True)
class Step:
    """What to run."""

    shape: Shape
    documents: tuple[tuple[int, int], ...]
    """Per document: tokens, and how many of its tiles stand evenly spread in it."""
    supervised: int
    """Tokens learned at the end of each document."""
    context_parallel_size: int = 1
    cores_per_process: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `ModelOptions` with their values."""
    repeats: int = 1
    count_memory: bool = False
    """Count tensors; slows the step down a little."""


@dataclass(frozen=True)
class Measured:
    """What one rank saw; of the fastest repeat where there are several."""

    loss: float
    seconds: float
    head_seconds: float
    """Forward and backward of the head."""
    tensor_bytes: int
    """Most memory of tensors made in the step: without weights, gradients and optimizer state."""
    resident_bytes: int
    """Largest resident set of the process."""


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Put this process on its own cores, as many as named, with as many threads."""
    before = os.sched_getaffinity(0)
    first = dist.get_rank() * count
    available = sorted(before)
    assert first + count <= len(available), f"rank {dist.get_rank()} needs {count} of {len(available)} cores"
    os.sched_setaffinity(0, available[first : first + count])
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)
        os.sched_setaffinity(0, before)


@contextmanager
def model_of(step: Step) -> Iterator[Any]:
    """Build the model of a step with random weights, the same on every rank."""
    layout = ParallelConfig(context_parallel_size=step.context_parallel_size, use_distributed_optimizer=False)
    options, image_token = ModelOptions(**step.options), step.shape.vocab - 1
    torch.manual_seed(0)
    with built(step.shape.hf_config(), layout, options, POLICY, image_token) as model:
        yield model


def micro_batch(step: Step, model: Any) -> MicroBatch:
    """Make this rank's share of the step's pack."""
    config: InternVLConfig = model.internvl
    generator = torch.Generator().manual_seed(1)
    per_tile, parts = config.tokens_per_tile, []
    for tokens, tiles in step.documents:
        ids = torch.randint(3, step.shape.vocab - 10, (tokens,), generator=generator)
        room = (tokens - step.supervised - 1) // max(tiles, 1)
        assert tiles == 0 or room > per_tile, f"{tiles} tiles of {per_tile} tokens do not fit {tokens} tokens"
        images = [(number * room + (room - per_tile) // 2, 1) for number in range(tiles)]
        for start, _ in images:
            ids[start : start + per_tile] = model.image_token_id
        ticks = position_ticks(tokens, images, [POLICY.stride or 1] * tiles, per_tile)
        labels = torch.full((tokens,), -100)
        labels[-step.supervised - 1 : -1] = ids[-step.supervised :]
        parts.append((ids, ticks, labels))
    every_id, every_tick, every_label = zip(*parts, strict=True)
    ids, labels = torch.cat(every_id), torch.cat(every_label)
    ticks = Ticks.joined(every_tick, every_tick[0].denominator)
    tiles = sum(tiles for _, tiles in step.documents)
    mine = model.coordinates.tiles(tiles)
    pixels = [torch.randn(3, 448, 448, generator=torch.Generator().manual_seed(tile)) for tile in mine]
    pack = TensorPack(
        ids,
        ticks,
        [tokens for tokens, _ in step.documents],
        labels=labels,
        loss_weights=(labels != -100).float(),
        num_tiles=[tiles],
        tiles=torch.stack(pixels) if pixels else None,
    )
    return PackCutter(model.coordinates, model.image_token_id, per_tile).cut(pack)


def run(step: Step) -> Measured:
    """Run a step of forward, backward and optimizer on this rank; the fastest of its repeats counts."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_v2pe.train.ddp import wrap
    from megatron_v2pe.train.optimizer_step import build_optimizer, take_step
    from megatron_v2pe.train.step import forward_backward

    with cores(step.cores_per_process), model_of(step) as model:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        layout = ParallelConfig(context_parallel_size=step.context_parallel_size, use_distributed_optimizer=False)
        wrapped = wrap(model, layout, groups, torch.device("cpu"))
        optimizer = build_optimizer(wrapped, AdamWConfig(lr=1e-4), torch.float32, False, False, groups)
        head = _timed_head(model)
        denominator = float(step.supervised * len(step.documents))
        best: Measured | None = None
        for _ in range(step.repeats):
            memory = TensorMemory()
            head.clear()
            wrapped.zero_grad_buffer()
            optimizer.zero_grad()
            dist.barrier()
            began = time.perf_counter()
            with memory if step.count_memory else nullcontext():
                loss = forward_backward(wrapped, iter([micro_batch(step, model)]), 1, denominator)
            take_step(optimizer)
            dist.barrier()
            seconds = time.perf_counter() - began
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            found = Measured(loss, seconds, sum(head), memory.peak, resident)
            best = found if best is None or seconds < best.seconds else best
        assert best is not None
        return best


def _timed_head(model: Any) -> list[float]:
    """Time the head's forward pass and, by two hooks around it, its backward pass."""
    spent: list[float] = []
    original = model.language_model.loss_sums

    def loss_sums(hidden: torch.Tensor, targets: Any) -> Any:
        marks: dict[str, float] = {}
        if hidden.requires_grad:
            hidden = hidden.view_as(hidden)
            hidden.register_hook(lambda _: spent.append(time.perf_counter() - marks["backward"]))
        began = time.perf_counter()
        sums = original(hidden, targets)
        spent.append(time.perf_counter() - began)
        loss = sums.total.view_as(sums.total)
        loss.register_hook(lambda _: marks.__setitem__("backward", time.perf_counter()))
        return sums._replace(total=loss)

    model.language_model.loss_sums = loss_sums
    return spent
