"""Small models of every language model in both Hugging Face layouts, and their logits here and in `transformers`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_v2pe.checkpoint.hf.random_weights import random_weights
from megatron_v2pe.checkpoint.hf.table import MappingTable, mapping_table
from megatron_v2pe.generate.engine import Engine
from megatron_v2pe.generate.generation import GenerationOptions, generate
from megatron_v2pe.generate.prompt import Prompt
from megatron_v2pe.models.config import InternVLConfig
from megatron_v2pe.models.micro_batch import PackCutter, TensorPack
from megatron_v2pe.models.native_config import NATIVE, in_layout
from megatron_v2pe.models.transformer_config import ModelOptions
from megatron_v2pe.parallel.config import ParallelConfig
from megatron_v2pe.v2pe.position_ids import find_images, position_ticks
from megatron_v2pe.v2pe.settings import StridePolicy
from megatron_v2pe.workshop.built_model import built
from megatron_v2pe.workshop.full_state import load_full

SPECIAL = {"img_start_id": 5, "img_end_id": 6, "img_context_id": 7}
VISION = {
    "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28, "patch_size": 7, "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6, "qk_normalization": False, "qkv_bias": True, "initializer_factor": 1.0,
    "hidden_act": "gelu", "drop_path_rate": 0.1, "use_flash_attn": True,
}  # fmt: skip
VISION_6B = {
    **VISION, "hidden_size": 40, "num_attention_heads": 5, "norm_type": "rms_norm", "qk_normalization": True,
    "qkv_bias": False,
}  # fmt: skip
"""A small tower of the kind of InternViT-6B: heads that no tensor-parallel size divides, norms over all of them."""
LLM = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 1000000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLMS: dict[str, dict[str, Any]] = {
    "internlm2": {
        **LLM, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False,
        "attn_implementation": "flash_attention_2", "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "qwen2": {
        **LLM, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 2,
    },
    "qwen3": {
        **LLM, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "attention_bias": False,
    },
    "llama": {
        **LLM, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "internlm3": {
        **LLM, "architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "bias": False, "qkv_bias": False,
        "head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 1,
        "rope_scaling": {"type": "dynamic", "factor": 6.0},
    },
    "phi3": {
        **LLM, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_key_value_heads": 4,
        "original_max_position_embeddings": 16, "max_position_embeddings": 64, "sliding_window": 128,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7],
            "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
        },
    },
}  # fmt: skip
"""`llm_config` of small models by name."""


def small_config(name: str, **changes: Any) -> dict[str, Any]:
    """Return an original `config.json` of a small model with one tile of 4 tokens; `changes` stand at the top."""
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
        "dynamic_image_size": True, "force_image_size": 28, "llm_config": LLMS[name], "vision_config": VISION,
        "max_dynamic_patch": 6, "min_dynamic_patch": 1, "ps_version": "v2", "select_layer": -1,
        "template": "internlm2-chat", "use_thumbnail": True, "pad2square": False, **changes,
    }  # fmt: skip


def small_state(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw the weights of a model, by the original names; no bias is zero, and no norm one."""
    generator = torch.Generator().manual_seed(seed + 1)
    state = random_weights(config, seed)
    for name, tensor in state.items():
        if tensor.dim() == 1:
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
        elif "lm_head" in name or "output" in name:
            tensor *= 10
    return state


def to_keys(table: MappingTable, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by Megatron-Core key."""
    full: dict[str, Tensor] = {}
    for mapping in table.tensors:
        target = full.setdefault(mapping.key, state[mapping.name].new_zeros(mapping.key_shape))
        for first, rows in mapping.to_mcore(state[mapping.name]):
            target[first : first + len(rows)] = rows
    return full


def from_keys(table: MappingTable, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by the names of a table."""
    return {
        mapping.name: mapping.to_hf(lambda first, rows, key=mapping.key: full[key][first : first + rows]).contiguous()
        for mapping in table.tensors
    }


def write_native(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a model, stated in original form, as a native folder: `config.json` and weights alone."""
    model = InternVLConfig.from_hf(config)
    native = from_keys(mapping_table(model, NATIVE), to_keys(mapping_table(model), state))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(native, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(in_layout(config, NATIVE, SPECIAL["img_context_id"])))


@dataclass(frozen=True)
class Document:
    """Text with images."""

    ids: Tensor
    """int64 [S]."""
    num_tiles: list[int]
    """Tiles of each image."""
    pixels: Tensor
    """[tiles, 3, side, side]."""


def document(tiles: Sequence[int], text: int, seed: int = 0) -> Document:
    """Draw a document with images of so many tiles, and `text` tokens before, between and behind them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(10, 300, (text,), generator=generator)]
    for count in tiles:
        image = torch.tensor([5] + [7] * (4 * count) + [6])
        parts += [image, torch.randint(10, 300, (text,), generator=generator)]
    return Document(torch.cat(parts), list(tiles), torch.randn(sum(tiles), 3, 28, 28, generator=generator))


def outcomes(
    config: dict[str, Any], state: dict[str, Tensor], documents: list[Document], strides: list[Any], tokens: int
) -> list[tuple[Tensor, list[int]]]:
    """Return for every document its logits [S, vocabulary] and the ids of a greedy answer; runs in a worker process.

    Args:
        config: original `config.json`.
        state: weights by the original names.
        documents: text and images.
        strides: for each document, positions that a tile spans; None: ordinary positions.
        tokens: tokens of an answer.
    """
    model_config, results = InternVLConfig.from_hf(config), []
    context, per_tile = SPECIAL["img_context_id"], model_config.tokens_per_tile
    full = to_keys(mapping_table(model_config), state)
    for item, stride in zip(documents, strides, strict=True):
        policy = StridePolicy("default") if stride is None else StridePolicy("v2pe_fix", stride)
        images = find_images(item.ids, item.num_tiles, per_tile, **SPECIAL)
        drawn = policy.draw(len(images), per_tile, epoch=0, sample=0)
        ticks = position_ticks(len(item.ids), images, drawn, per_tile, policy.denominator(per_tile))
        with built(config, ParallelConfig(), ModelOptions(params_dtype=torch.float32), policy, context) as model:
            load_full(model.eval(), full)
            pack = TensorPack(item.ids, ticks, [len(item.ids)], num_tiles=item.num_tiles, tiles=item.pixels)
            with torch.no_grad():
                logits = model(PackCutter(model.coordinates, context, per_tile).cut(pack))
            prompt = Prompt(item.ids, ticks, item.pixels, tuple(item.num_tiles))
            answer = generate(Engine(model), [prompt], GenerationOptions(max_new_tokens=tokens))[0]
        results.append((logits, list(answer.token_ids)))
    return results
