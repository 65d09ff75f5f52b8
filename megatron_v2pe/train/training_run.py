"""What all parts of a run share, and what a run begins with: a model with its weights and its optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_v2pe.checkpoint.growth import Growth
from megatron_v2pe.data.encode import DocumentEncoder, ModelFacts
from megatron_v2pe.data.tokenizer import Tokenizer
from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.lora_plan import LowRankPlan
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.train.config import ExperimentConfig
from megatron_v2pe.train.memory import MemoryBudget, packs_per_step
from megatron_v2pe.train.validation.opening import ValidationData
from megatron_v2pe.v2pe.settings import StridePolicy

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class TrainingRun:
    """What all parts of a run share; every rank has the same but for `device` and `groups`."""

    config: ExperimentConfig
    world: launch.World
    device: Device
    groups: ProcessGroupCollection
    start: Path
    """Megatron checkpoint folder the weights come from."""
    model: InternVLConfig
    policy: StridePolicy
    tokenizer: Tokenizer
    budget: MemoryBudget
    """What decides about memory."""
    growth: Growth | None = None
    """New tokens of the run; `model` and `tokenizer` have them."""
    table_rows: range | None = None
    """Rows of the vocabulary's tables that checkpoints with adapters hold; None: no new token has rows of its own
    there, or the tables learn as a whole."""
    validation_data: ValidationData | None = None
    """What it is validated on; None: nothing, or not opened yet."""

    @property
    def logs(self) -> Path | None:
        """Folder of log and metrics; None where nothing is kept."""
        return log_folder(self.config)

    @property
    def where(self) -> str:
        """What the run runs on, in words."""
        return where(self.device, self.world)

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and activations."""
        return _DTYPES[self.config.train.precision]

    @property
    def packs_per_step(self) -> int:
        """Packs of a step, over all ranks."""
        return packs_per_step(self.budget)

    @property
    def adapters(self) -> LowRankPlan | None:
        """Adapters on linears of the model."""
        return self.budget.adapters

    @property
    def facts(self) -> ModelFacts:
        """What the data pipeline has to know of the model."""
        return ModelFacts(self.model.tile_size, self.model.tokens_per_tile)

    @property
    def encoder(self) -> DocumentEncoder:
        """What makes documents of samples."""
        return DocumentEncoder(self.config.data, self.tokenizer, self.facts, self.policy, self.config.train.seed)


@dataclass(frozen=True)
class Loaded:
    """A model with its weights and its optimizer, where a run begins."""

    model: InternVLModel
    wrapped: DistributedDataParallel
    """The model as Megatron-Core trains it, its gradients reduced over data parallel ranks."""
    optimizer: MegatronOptimizer
    resumed: Path | None
    """Training checkpoint the run goes on from; None where it starts from the checkpoint's weights."""
    iteration: int
    """Steps done."""
    loader_state: dict[str, Any] | None
    """State of the loader from which the data go on; None at a start."""
    after_steps: dict[str, Any]
    """State of what is done between steps; empty at a start."""


def log_folder(config: ExperimentConfig) -> Path | None:
    """Return the folder of log and metrics; None where nothing is kept."""
    if config.logging.dir:
        return Path(config.logging.dir)
    return Path(config.checkpoint.save) / "logs" if config.checkpoint.save else None


def where(device: Device, world: launch.World) -> str:
    """Return what a run runs on, in words."""
    return f"{device.describe()}; {world.world_size} rank{'s' if world.world_size > 1 else ''}"
