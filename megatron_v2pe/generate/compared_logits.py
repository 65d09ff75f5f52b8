"""Logits of two checkpoints on the same input: what a comparison of tensors cannot say, such as another activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_v2pe.checkpoint.trained import trained_model
from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.policy import inference_policy
from megatron_v2pe.generate.pretrained import ChatQuestion, load_stage, open_pretrained
from megatron_v2pe.generate.prompt import Prompt, checkpoint_tiling
from megatron_v2pe.generate.session import Session
from megatron_v2pe.models.build import build_model
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy

_RANDOM_LENGTHS = (5, 17, 40)
"""Tokens before the image, in the random prompts; the first has no image."""
_IMAGE_ID = 0
"""Stands in random input for a piece of an image: what is embedded there is the image's, whatever the id."""


@dataclass(frozen=True)
class LogitInput:
    """What two checkpoints are asked."""

    prompt: str | None = None
    images: tuple[str, ...] = ()
    seed: int = 0
    """The seed of random tokens and pixels, where no prompt is given."""


def logits_of(folder: Path, given: LogitInput) -> Tensor:
    """Return the logits of the token after each prompt, float32 [prompts, vocabulary], computed in one process.

    Args:
        folder: a Megatron checkpoint; a trained one is asked as it was trained.
        given: a question with images, which needs the checkpoint's tokenizer, or random input, which needs none.

    Raises:
        ConfigError: the configuration or the tokenizer does not fit, or images without a prompt.
        CheckpointError: the folder is incomplete, unsafe, or of another model.
        DataError: an image is missing or none.
    """
    if given.prompt is None:
        if given.images:
            raise ConfigError("--image needs --prompt: random input has random pixels")
        return _random_logits(folder, given.seed)
    with open_pretrained(folder, device="cpu") as pretrained:
        question = ChatQuestion((("human", given.prompt),), given.images)
        prompts = pretrained.encode([question], checkpoint_tiling(pretrained.config), 1)
        return _last(pretrained.engine, prompts)


def _random_logits(folder: Path, seed: int) -> Tensor:
    config = trained_model(folder)
    policy, device = inference_policy(config, None, None), Device.choose("cpu", 0)
    launch.initialize(launch.World(), device, 1.0)
    try:
        groups = topology.initialize(ParallelConfig(), seed=0)
        options = ModelOptions(params_dtype=torch.float32, perform_initialization=False)
        model = build_model(config, ParallelConfig(), options, policy, _IMAGE_ID, groups)
        load_stage(folder, model)
        return _last(Engine(model.eval()), random_prompts(config, policy, seed))
    finally:
        topology.destroy()
        launch.shutdown()


def random_prompts(config: InternVLConfig, policy: StridePolicy, seed: int) -> list[Prompt]:
    """Return prompts of random tokens and pixels; the same for two models of the same sizes."""
    generator = torch.Generator().manual_seed(seed)
    per_tile, side = config.tokens_per_tile, config.tile_size
    found: list[Prompt] = []
    for number, before in enumerate(_RANDOM_LENGTHS):
        tiles = min(number, 2)
        ids = torch.randint(1, config.llm.vocab_size, (before + tiles * per_tile + 3,), generator=generator)
        ids[before : before + tiles * per_tile] = _IMAGE_ID
        images = [(before, tiles)] if tiles else []
        strides = policy.draw(len(images), per_tile, epoch=0, sample=0)
        ticks = position_ticks(len(ids), images, strides, per_tile, policy.denominator(per_tile))
        pixels = torch.randint(0, 256, (tiles, side, side, 3), generator=generator, dtype=torch.uint8)
        found.append(Prompt(ids, ticks, pixels, (tiles,) if tiles else ()))
    return found


def _last(engine: Engine, prompts: Sequence[Prompt]) -> Tensor:
    logits = Session(engine, prompts).prefill()
    assert logits is not None
    return logits.float().clone()
