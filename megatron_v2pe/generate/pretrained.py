"""A checkpoint ready to answer: model, tokenizer and positions, opened on one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_v2pe.checkpoint import store
from megatron_v2pe.checkpoint.folder import HF_FOLDER, newest
from megatron_v2pe.data.conversation import get_template
from megatron_v2pe.data.image_transform import NORMALISATION, normalise_tiles
from megatron_v2pe.data.pictures import TilingOptions
from megatron_v2pe.data.tokenizer import EOS, Tokenizer
from megatron_v2pe.device import launch
from megatron_v2pe.device.device import Device
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.generate.greedy import generate_greedy
from megatron_v2pe.generate.prompt import NORMALIZE_TYPE, encode_prompt
from megatron_v2pe.models.build import build_model
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.models.vlm import InternVLModel
from megatron_v2pe.parallel import topology
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import Stride
from megatron_v2pe.v2pe.stride import StridePolicy

USUAL_SHARE = 4
"""Without a stride, checkpoints of `v2pe_rnd` are asked with a quarter of a tile's tokens: 64 of InternVL2's 256."""


@dataclass(frozen=True)
class Pretrained:
    """A whole model on this process and what belongs to it."""

    model: InternVLModel
    config: InternVLConfig
    tokenizer: Tokenizer
    policy: StridePolicy
    device: Device
    dtype: torch.dtype

    def answer(
        self, turns: Sequence[tuple[str, str]], images: Sequence[str], tiling: TilingOptions, max_new_tokens: int
    ) -> str:
        """Return the greedy answer to a conversation that ends with a question; see `encode_prompt`."""
        prompt = encode_prompt(turns, images, self.config, self.tokenizer, self.policy, tiling)
        target = self.device.torch_device
        pixels = None
        if prompt.tiles.shape[0]:
            pixels = normalise_tiles(prompt.tiles.to(target), *NORMALISATION[NORMALIZE_TYPE]).to(self.dtype)
        end = get_template(self.config.template).end
        stop = frozenset({self.tokenizer.token_id(EOS), self.tokenizer.token_id(end)})
        ids, ticks = prompt.input_ids.to(target), prompt.position_ticks
        generated = generate_greedy(self.model, ids, ticks, pixels, max_new_tokens, stop)
        return self.tokenizer.decode(generated.token_ids).strip()


def inference_policy(config: InternVLConfig, stride: Stride | None = None) -> StridePolicy:
    """Return the positions a checkpoint is asked with: those it was trained with, at one stride.

    Args:
        config: the checkpoint's; `rope_pos_id_version` says what it was trained with.
        stride: positions a tile spans; without it the checkpoint's own, or `USUAL_SHARE` of a tile's tokens.

    Raises:
        ConfigError: a stride for a checkpoint that was trained without V2PE.
    """
    if config.rope_pos_id_version == "default":
        if stride is not None:
            raise ConfigError(
                f"stride {stride} was asked for, but the checkpoint's rope_pos_id_version is default, which has none"
            )
        return StridePolicy("default")
    usual = config.rope_pos_id_stride or max(1, config.tokens_per_tile // USUAL_SHARE)
    return StridePolicy("v2pe_fix", stride if stride is not None else usual)


@contextmanager
def open_pretrained(
    folder: str | Path, stride: Stride | None = None, device: str = "auto", dtype: torch.dtype = torch.float32
) -> Iterator[Pretrained]:
    """Load a Megatron checkpoint folder on this process alone, and leave the process group at the end.

    An HF folder is converted first, by `convert.api.hf_to_mcore` or `tools/convert_checkpoint.py`.

    Args:
        folder: a Megatron checkpoint, converted or trained in any layout, or a run's folder (its newest is taken).
        stride: see `inference_policy`.
        device: `cpu`, `cuda`, or `auto`.
        dtype: of parameters and activations.

    Raises:
        ConfigError: the configuration or the tokenizer does not fit.
        CheckpointError: the folder is incomplete, unsafe, or of another model.
    """
    path = newest(Path(folder)) or Path(folder)
    hf = path / HF_FOLDER
    config, tokenizer = InternVLConfig.from_folder(hf), Tokenizer.from_folder(hf)
    if missing := tokenizer.missing():
        raise ConfigError(f"{hf}: the tokenizer lacks {', '.join(missing)}; it is not an InternVL2 tokenizer")
    policy = inference_policy(config, stride)
    chosen = Device.choose(device)
    layout = ParallelConfig()
    launch.initialize(launch.World(), chosen)
    try:
        groups = topology.initialize(layout, seed=0)
        options = ModelOptions(params_dtype=dtype, perform_initialization=False)
        model = build_model(config, layout, options, policy, tokenizer.img_context_id, groups)
        store.load_model(path, model)
        yield Pretrained(model.eval(), config, tokenizer, policy, chosen, dtype)
    finally:
        topology.destroy()
        launch.shutdown()
