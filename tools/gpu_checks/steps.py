"""Part (c): real training steps of full-size InternVL2-2B on one card: 33K tokens in one document, a mixed pack, 130K.

The step is the trainer's own, with everything it does: cutting, copying, forward, backward, clipping, AdamW. What is
recomputed is decided by `train.recompute auto` for this card. The same pack is learned again and again, so its loss
must fall; the memory that was estimated stands beside the memory that was used.
"""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from gpu_checks.model import ALONE, POLICY, Size, model_of, one_process, size_for
from gpu_checks.outcome import Outcome
from megatron_v2pe.data.config import DataConfig
from megatron_v2pe.data.image_operations import NORMALISATION
from megatron_v2pe.data.types import Batch
from megatron_v2pe.device.cards import peak_tflops
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import V2PEError
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.flops import StepCost
from megatron_v2pe.models.micro_batch import PackCutter, PixelSettings
from megatron_v2pe.parallel.rank_coordinates import RankCoordinates
from megatron_v2pe.train.config import AdamWConfig, ExperimentConfig, TrainConfig
from megatron_v2pe.train.data_feed import DataFeed
from megatron_v2pe.train.ddp import wrap
from megatron_v2pe.train.loop import Trainer
from megatron_v2pe.train.memory import MemoryBudget, in_words, plan_of_stage
from megatron_v2pe.train.metrics import StepMetrics
from megatron_v2pe.train.optimizer_step import build_optimizer, build_scheduler
from megatron_v2pe.train.signals import StopRequest
from megatron_v2pe.train.writers import MetricsLog
from megatron_v2pe.v2pe.position_ids import Ticks, position_ticks

SUPERVISED = 100
"""Tokens learned at the end of every document."""
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """One pack."""

    name: str
    documents: tuple[tuple[int, int], ...]
    """Tokens of each document, and tiles of its one image."""
    warm: int = 2
    """Steps before any is timed: compilation, plans of kernels, the allocator."""
    timed: int = 3
    """Steps timed; the median counts."""

    @property
    def tokens(self) -> int:
        """Return the tokens of all documents."""
        return sum(tokens for tokens, _ in self.documents)

    @property
    def tiles(self) -> int:
        """Return the tiles of all documents."""
        return sum(tiles for _, tiles in self.documents)


MIXED = (
    *((10100, 36), (6200, 24), (3400, 13), (2700, 10), (2100, 8)),
    *(((785, 3), (275, 1)) * 6),
    *(((530, 2),) * 4),
    *(((60, 0),) * 8),
    (540, 2),
)
WORKS = {
    "cuda": (
        Work("one document of 33K", ((33375, 130),)),
        Work("mixed pack of 34K", MIXED),
        Work("one document of 130K", ((130000, 507),), warm=1, timed=1),
    ),
    "cpu": (
        Work("one document", ((700, 2),), warm=1, timed=1),
        Work("mixed pack", ((290, 1), (40, 0), (280, 1)), warm=1, timed=1),
    ),
}


def run(kind: str) -> Outcome:
    """Measure the steps."""
    outcome, size = Outcome(), size_for(kind)
    for work in WORKS[kind]:
        try:
            with one_process(kind) as device:
                _measure(outcome, size, device, work)
        except (V2PEError, RuntimeError) as error:  # out of memory, say: the others are measured all the same
            outcome.must(False, f"{work.name}: {type(error).__name__}: {str(error)[:400]}")
        gc.collect()  # models refer to themselves
        if kind == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if kind == "cpu":
        outcome.remarks.append("a small model in fp32; the rates say nothing about a GPU")
    return outcome


def _measure(outcome: Outcome, size: Size, device: Device, work: Work) -> None:
    config = _settings(size, work)
    model = InternVLConfig.from_hf(size.hf_config)
    budget = MemoryBudget(config, model, 1, device.memory_bytes())
    plan = plan_of_stage(budget, 0)
    with model_of(size, device, recompute_plan=plan) as stage:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        wrapped = wrap(stage, ALONE, groups, device.torch_device)
        parallel = ALONE.use_distributed_optimizer, ALONE.overlap_param_gather
        optimizer = build_optimizer(wrapped, config.optimizer, size.dtype, *parallel, groups)
        steps = _Steps()
        stop = StopRequest()
        trainer = Trainer(
            model=wrapped,
            optimizer=optimizer,
            scheduler=build_scheduler(optimizer, config.optimizer, config.train.train_steps),
            feed=DataFeed(_Again(_batch(size, model, work)), None, [0], RankCoordinates(), 0),
            device=device,
            cutter=PackCutter(stage.coordinates, size.image_token, model.tokens_per_tile),
            pixels=PixelSettings(device.torch_device, size.dtype, NORMALISATION["imagenet"]),
            num_micro_batches=1,
            seed=0,
            cost=StepCost.of(model),
            metrics=cast(MetricsLog, steps),
            save=lambda step: None,
            save_interval=None,
            peak_tflops=peak_tflops(torch.cuda.get_device_name()) if device.kind == "cuda" else None,
        )
        try:
            trainer.run(0, config.train.train_steps, None, stop)
        finally:
            stop.restore()
    losses = [step.loss for step in steps.found]
    outcome.must(losses[-1] < losses[0], f"{work.name}: the loss of one pack learned again does not fall: {losses}")
    outcome.must(abs(losses[0] - _log(size.vocabulary)) < 1, f"{work.name}: first loss {losses[0]}, not near random")
    timed = steps.found[work.warm :]
    seconds, last = statistics.median(step.seconds for step in timed), timed[-1]
    numbers: dict[str, Any] = {"s": seconds, "TFLOP": last.tflop, "TFLOP/s": last.tflop / seconds}
    if last.mfu is not None:
        numbers["MFU"] = f"{last.mfu * last.seconds / seconds:.1%}"
    numbers |= {"peak GiB": last.memory_gib, "cold s": steps.found[0].seconds, "loss": losses[0]}
    if device.kind == "cuda":
        estimated = budget.estimate(0, budget.plans[0]).total / GIB
        numbers["estimated GiB"] = estimated
        sentence = f"{work.name}: {last.memory_gib:.1f} GiB used, {estimated:.1f} estimated"
        outcome.must(0.6 * estimated < last.memory_gib < 1.1 * estimated, sentence)
        outcome.remarks.append(f"{work.name}: {in_words(budget, 0)}")
    outcome.add(f"{work.name}, {work.tokens} tokens, {work.tiles} tiles", **numbers)


def _settings(size: Size, work: Work) -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(
            max_seq_length=work.tokens, max_packed_tokens=work.tokens, num_images_expected=max(work.tiles, 1)
        ),
        optimizer=AdamWConfig(lr=1e-4, warmup_ratio=0.0),
        train=TrainConfig(
            train_steps=work.warm + work.timed,
            precision="bf16" if size.dtype == torch.bfloat16 else "fp32",
            recompute="auto",
        ),
    )


def _batch(size: Size, model: InternVLConfig, work: Work) -> Batch:
    """Return the pack: random text, random tiles, an image at the beginning of a document that has one."""
    generator, parts = torch.Generator().manual_seed(0), []
    for tokens, tiles in work.documents:
        ids = torch.randint(3, size.image_token - 10, (tokens,), generator=generator)
        ids[1 : 1 + tiles * model.tokens_per_tile] = size.image_token
        images = [(1, tiles)] if tiles else []
        ticks = position_ticks(tokens, images, [POLICY.stride or 1] * len(images), model.tokens_per_tile)
        labels = torch.full((tokens,), -100)
        learned = min(SUPERVISED, tokens - 1 - tiles * model.tokens_per_tile - 1)
        assert learned > 0, f"a document of {tokens} tokens has no room for {tiles} tiles and text"
        labels[-learned - 1 : -1] = ids[-learned:]
        parts.append((ids, labels, ticks))
    every_id, every_label, every_tick = zip(*parts, strict=True)
    ids, labels = torch.cat(every_id), torch.cat(every_label)
    ticks = Ticks.joined(every_tick, every_tick[0].denominator)
    side = model.tile_size
    return Batch(
        input_ids=ids,
        labels=labels,
        loss_weights=(labels != -100).float(),
        position_ticks=ticks,
        seqlens=tuple(tokens for tokens, _ in work.documents),
        tiles=torch.randint(0, 256, (work.tiles, side, side, 3), dtype=torch.uint8, generator=generator),
        num_tiles=tuple(tiles for _, tiles in work.documents if tiles),
        sources=(),
    )


def _log(number: int) -> float:
    return torch.tensor(float(number)).log().item()


class _Steps:
    """Takes what a step measured."""

    def __init__(self) -> None:
        self.found: list[StepMetrics] = []

    def write(self, metrics: StepMetrics, values: Mapping[str, float]) -> None:
        self.found.append(metrics)


class _Again:
    """A loader that gives the same pack again and again."""

    unusable = 0

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.unreadable: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch

    def state_dict(self) -> dict[str, Any]:
        return {}
